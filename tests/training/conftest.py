"""What the tests of training train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cmt.calib_data.sources import FolderImages

NAMES = [f"{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(4)]


@pytest.fixture
def folder(make_images: Callable[..., Path]) -> Path:
    """Three classes of four pictures."""
    return make_images(*NAMES)


@pytest.fixture
def images(folder: Path) -> FolderImages:
    return FolderImages(folder)
