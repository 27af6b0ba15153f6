"""Fixtures that tests of quantisation share."""

from __future__ import annotations

import numpy as np
import pytest

from cmt.calib_data.prepared import PreparedImages
from cmt.calib_data.preprocessing import Preprocessing


@pytest.fixture
def noise() -> PreparedImages:
    """Sixteen images of it, without labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    keys = [str(i) for i in range(16)]
    preprocessing = Preprocessing((64, 64), (64, 64))
    return PreparedImages(pixels, None, keys, keys, [], 16, "noise", preprocessing)
