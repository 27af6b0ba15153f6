"""Schedulers and workers of Dask in this process, which cost no process each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmt.commands import main
from cmt.fleet.cluster import IMAGES, TIMING

Start = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def start() -> Start:
    """`start(workers=2)`: a scheduler on loopback with so many workers, as a context.

    Further arguments are those of `distributed.LocalCluster`.
    """
    from distributed import LocalCluster

    @contextmanager
    def make(workers: int = 2, **options: Any) -> Iterator[Any]:
        settings: dict[str, Any] = {
            "processes": False,
            "protocol": "tcp://",
            "host": "127.0.0.1",
            "threads_per_worker": 1,
            "resources": {TIMING: 1},
            "dashboard_address": "127.0.0.1:0",
            "worker_dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
        }
        with LocalCluster(n_workers=workers, **{**settings, **options}) as cluster:
            yield cluster

    return make


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in the place of the one of the run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cmt-export"


@pytest.fixture
def images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of photos, which workers have too."""
    monkeypatch.setenv(IMAGES, str(photos))
    return photos


@pytest.fixture
def fleet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """`fleet(folder, "--tune", at=cluster)`: exit status, standard output and error."""

    def run(*arguments: object, at: Any = None) -> tuple[int, str, str]:
        words = [*map(str, arguments)]
        if at is not None:
            words += ["--workers", at.scheduler_address]
        monkeypatch.setattr(sys, "argv", ["cmt-fleet", *words])
        with pytest.raises(SystemExit) as stop:
            main.run("cmt-fleet")
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
