"""`python -m cmt.commands export --variant ti ...`, where scripts cannot be started by name."""

from __future__ import annotations

from cmt.commands.main import run_named

run_named()
