"""What an image may be at most; runtime/cpp/src/image.cpp has the same numbers."""

from __future__ import annotations

MOST_PIXELS = 178_956_970
"""Pillow's own: where it refuses an image as a bomb."""
MOST_SIDE = 2**20
"""Pixels. Beyond, decoders compute sizes of rows that overflow, and speak of memory."""
MOST_BYTES = 2**30
"""Of a JPEG or PNG file, which is read whole."""
MOST_TEXT = 2**20
"""Bytes of metadata that is stored compressed; Pillow's own."""


class UnreadableImageError(Exception):
    """One image that cannot be decoded; the caller decides whether to go on."""


def check_size(width: int, height: int, most: int) -> None:
    """Refuse a declared size before memory is taken for it.

    Args:
        most: how many pixels the file's bytes can hold.

    Raises:
        UnreadableImageError: it has no pixels, too many, or more than its bytes can hold.
    """
    if not (0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE and width * height <= MOST_PIXELS):
        raise UnreadableImageError(f"it has {width} x {height} pixels: make it smaller")
    if width * height > most:
        raise UnreadableImageError(
            f"it says {width} x {height} pixels, which its bytes cannot hold: get it anew"
        )
