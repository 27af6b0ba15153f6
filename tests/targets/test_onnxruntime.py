"""What the runtimes leave behind in the process that loads files."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmt.targets import onnxruntime
from cmt.targets.onnxruntime import MOST_AT_ONCE, run_each
from cmt.targets.openvino import build_ir

TWO_FILES_THEN_AN_INTERRUPT = """
import os
import signal
import sys
from pathlib import Path

from cmt.targets.openvino import load_openvino

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
first, second = (load_openvino(Path(sys.argv[1]), 1) for _ in range(2))
del first
del second
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_openvino_files_were_dropped_is_no_crash(
    float_graph: Callable[[str], Path], tmp_path: Path
) -> None:
    build_ir(float_graph("official"), "fp32", tmp_path / "file.xml")
    command = [sys.executable, "-c", TWO_FILES_THEN_AN_INTERRUPT, tmp_path / "file.xml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("interrupted\n", 0), result.stderr


Compute = Callable[[float], float]


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Compute], None]:
    """A session that answers with a function of the batch's first number."""

    def install(compute: Compute) -> None:
        def run(_: Any, given: dict[str, Any]) -> list[Any]:
            return [np.array(compute(float(given["input"].flat[0])))]

        source = SimpleNamespace(name="input")
        session = SimpleNamespace(run=run, get_inputs=lambda: [source])
        monkeypatch.setattr(onnxruntime, "cpu_session", lambda model, threads, entries: session)

    return install


def numbered(count: int, images: int = 1) -> Iterator[np.ndarray]:
    return (np.full((images, 1), i, np.float32) for i in range(count))


def test_batches_run_side_by_side_and_are_answered_in_order(
    computing: Callable[[Compute], None],
) -> None:
    together = threading.Barrier(2, timeout=30)  # breaks where they run one after the other
    second_done = threading.Event()

    def compute(number: float) -> float:
        together.wait()
        if number == 0:
            assert second_done.wait(30)
        elif number == 1:
            second_done.set()
        return 10 * number

    computing(compute)
    answers = [
        (float(batch[0, 0]), float(y)) for batch, (y,) in run_each(b"", None, numbered(4), 2)
    ]
    assert answers == [(0, 0), (1, 10), (2, 20), (3, 30)]


@pytest.mark.parametrize(("images", "ahead"), [(1, 3), (MOST_AT_ONCE, 1)])
def test_few_images_are_read_ahead(
    images: int, ahead: int, computing: Callable[[Compute], None]
) -> None:
    computing(lambda number: number)
    drawn, done = [], []

    def stream() -> Iterator[np.ndarray]:
        for batch in numbered(12, images):
            drawn.append(batch)
            assert len(drawn) - len(done) <= ahead + 1
            yield batch

    for batch, _ in run_each(b"", None, stream(), threads=3):
        done.append(batch)
    assert len(done) == 12


def test_an_error_comes_with_its_batch(computing: Callable[[Compute], None]) -> None:
    def compute(number: float) -> float:
        if number == 2:
            raise RuntimeError("no such kernel")
        return number

    computing(compute)
    answers = run_each(b"", None, numbered(5), threads=2)
    assert [float(next(answers)[1][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="no such kernel"):
        next(answers)
