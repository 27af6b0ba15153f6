"""Engines are native code: none is loaded unless its signer is trusted or it was built here."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmt.bundle.golden import verify
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError
from cmt.targets.registry import load_settings, not_runnable
from cmt.targets.tensorrt import library, made_here
from cmt.targets.tensorrt.engine import engine_settings, load_engine

NAME = "tensorrt/cmt_tiny.fp16.engine"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, with nothing in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cmt-export" / "engines"


@pytest.fixture
def engine(stored: Path, install: Callable[..., Any]) -> tuple[OpenBundle, Any]:
    """A bundle with an engine for the simulated GPU alone, and the simulation."""
    machine = install("tensorrt 10.3.0")
    manifest = json.loads((stored / "manifest.json").read_text())
    (stored / NAME).parent.mkdir()
    (stored / NAME).write_bytes(b"an engine")
    np.save(stored / "golden" / "engine.npy", np.zeros((8, 2), np.float32))
    golden = [describe_file(stored, stored / "golden" / "engine.npy")]
    entry = {
        **{"target": "tensorrt", "precision": "fp16", **describe_file(stored, stored / NAME)},
        **{"built_with": {"tensorrt": "10.3.0"}, "built_for": ["sm87"], "settings": {}},
        **{"gpu": "Orin", "compatible": ["version"]},
        "golden": {"outputs": golden, "produced_by": "tensorrt", "max_rel": 0.02},
    }
    write_manifest(stored, {**manifest, "artefacts": [entry]})
    return open_bundle(stored), machine


def loaded(machine: Any) -> bool:
    return any("deserialize" in call for call in machine.asked)


def test_an_engine_of_a_bundle_that_nobody_vouches_for_is_not_loaded(engine: Any) -> None:
    bundle, machine = engine
    (entry,) = bundle.artefacts
    assert "nobody vouches for this one" in not_runnable(entry)
    with pytest.raises(InputError, match="can run none"):
        list(verify(bundle, 1))
    with pytest.raises(InputError, match="nobody vouches"):
        load_engine(bundle.file(entry), load_settings(entry), None)
    assert not loaded(machine)
    assert not_runnable(entry, trusted=True) is None
    load_engine(bundle.file(entry), load_settings(entry, trusted=True), None)
    assert loaded(machine)


@pytest.mark.parametrize("key", ["trusted", "settings"])
def test_no_word_of_the_bundle_makes_it_trusted(engine: Any, key: str) -> None:
    bundle, machine = engine
    (entry,) = bundle.artefacts
    forged = {**entry, "settings": {"trusted": True}, "trusted": True}
    with pytest.raises(InputError, match="nobody vouches"):
        load_engine(bundle.file(entry), load_settings(forged), None)
    assert not loaded(machine)


def test_what_this_user_built_is_run_from_any_bundle(engine: Any, cache: Path) -> None:
    bundle, machine = engine
    (entry,) = bundle.artefacts
    made_here.record(bundle.file(entry))
    assert cache.stat().st_mode & 0o777 == 0o700
    assert not_runnable(entry) is None
    load_engine(bundle.file(entry), load_settings(entry), None)
    assert loaded(machine)
    bundle.file(entry).write_bytes(b"another")
    with pytest.raises(InputError, match="not the file of this bundle"):
        load_engine(bundle.file(entry), load_settings(entry), None)


@pytest.mark.parametrize("kind", ["readable", "of another", "link", "file"])
def test_a_record_that_others_could_write_vouches_for_nothing(
    engine: Any, cache: Path, kind: str, tmp_path: Path
) -> None:
    bundle, _ = engine
    (entry,) = bundle.artefacts
    made_here.record(bundle.file(entry))
    if kind == "readable":
        cache.chmod(0o755)
    elif kind == "of another":
        if os.geteuid() != 0:
            pytest.skip("only root can make a folder of another user")
        os.chown(cache, 12345, 12345)
    else:
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere") if kind == "link" else cache.touch()
    assert "nobody vouches" in not_runnable(entry)
    with pytest.raises(InputError, match=str(cache)):
        made_here.record(bundle.file(entry))


@pytest.mark.parametrize(
    "built_with",
    [{"venv.__main__": "1"}, {"antigravity": "1"}, {}, {"tensorrt": "1", "os": "1"}, {"": "1"}],
)
def test_nothing_is_imported_by_a_name_that_was_read(
    engine: Any, built_with: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = engine
    entry = {**bundle.artefacts[0], "built_with": built_with}
    asked: list[str] = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib, "import_module", asked.append)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: (asked.append(name), find(name)))
    before = set(sys.modules)
    for use in (library.not_for_here, engine_settings):
        with pytest.raises(InputError, match="names no TensorRT"):
            use(entry)
    for name in built_with:
        if name != "tensorrt":
            with pytest.raises(InputError, match="is no TensorRT"):
                library.import_library(name)
    assert {*asked} <= {*library.LIBRARIES}
    assert {*sys.modules} - before == set()
