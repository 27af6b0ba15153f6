"""What a worker is called and what kind of machine it is on, which it finds by itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from cmt.measure.bench import host_name
from cmt.targets.machine import Environment

MACHINE = "CMT_MACHINE"
"""The environment variable that names a worker's machine, in the place of its host's name."""
_VNNI = {"avx_vnni", "avx512_vnni"}


def machine_name() -> str:
    """This machine's, as reports call it."""
    return os.environ.get(MACHINE) or host_name()


def tags_of(environment: Environment, machine: str) -> list[str]:
    """`cpu`, `gpu`, `jetson` and `vnni`, where they are true of a machine, and its name."""
    found = {
        "cpu": True,
        "gpu": environment["gpu"] is not None,
        "jetson": "jetson" in environment["cpu"].lower(),
        "vnni": not _VNNI.isdisjoint(environment["cpu_flags"]),
    }
    return [*(tag for tag, true in found.items() if true), machine]


def kind_of(environment: Mapping[str, Any]) -> str:
    """The same for machines that answer alike: of one processor, one GPU, the same versions."""
    keys = ("cpu", "cpu_flags", "gpu", "packages")
    text = json.dumps([environment[key] for key in keys], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
