"""What a measured row must say of how fast it is, on a quiet machine and on a busy one."""

from __future__ import annotations

from typing import Any


def assert_told(row: dict[str, Any], field: str) -> None:
    """The ratio lies in its interval; on a machine that was too busy there is none, and why."""
    found, timing = row[field], row["timing"]
    assert (found is None) == timing["busy"]
    if found is None:
        assert "busy" in row["reasons"][field]
    else:
        assert found["ci95"][0] <= found["ratio"] <= found["ci95"][1]
        assert found["rounds"] == timing["rounds"] - timing["disturbed"]
