"""What stands where a file should be, and is none."""

from __future__ import annotations

import os
from pathlib import Path


def put_no_file(path: Path, kind: str) -> None:
    """In the place of a file a "pipe", a "folder", an "endless" one or a "link to nothing"."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else "nowhere")
