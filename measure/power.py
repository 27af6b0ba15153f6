"""What a Jetson draws, rail by rail, as NVIDIA's tegrastats reads it from the board's sensors."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL_MS = 100
# "VDD_IN 4890mW/4712mW" is what it draws now and has drawn on average; JetPack 4 leaves out the
# units. "RAM 2390/3964MB" is none of it.
_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")


@contextmanager
def sampled(samples: dict[str, list[int]]) -> Iterator[None]:
    """Add to `samples` what each rail draws, in mW, ten times a second while the block runs.

    Which rails there are depends on the board ("Jetson Linux Developer Guide", "tegrastats
    Utility"); without tegrastats there are none.
    """
    tool = shutil.which("tegrastats")
    if tool is None:
        yield
        return
    with tempfile.TemporaryFile("w+") as lines:  # a pipe would be full after some seconds
        command = [tool, "--interval", str(INTERVAL_MS)]
        with subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.terminate()
        lines.seek(0)
        for rail, milliwatts in _RAIL.findall(lines.read()):
            samples.setdefault(rail, []).append(int(milliwatts))
