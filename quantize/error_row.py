"""Rows of what quantising loses; needs no runtime."""

from __future__ import annotations

from typing import TypedDict


class Errors(TypedDict):
    """Of logits, beside those of the float graph; see `sensitivity.errors`."""

    sqnr_db: float | None
    kl: float | None
    changed: float
