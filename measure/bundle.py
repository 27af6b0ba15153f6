"""A bundle opened for use: every file is checked before anything is loaded from it.

Needs the base install alone. `runtime/cpp/src/bundle.cpp` keeps the same rules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from calib_data.preprocessing import Preprocessing
from cmt.errors import InputError
from measure.locking import lock
from measure.replacing import finish_replacing, replacing

MANIFEST = "manifest.json"
SEAL = "manifest.json.sha256"
"""The manifest's own hash, in the form that `sha256sum --check` reads."""
VERSION = 1
WAITING_SECONDS = 60
"""How long another process may take to write into the bundle."""
SCHEMA = Path(__file__).parent / "schema" / "manifest.schema.json"

Entry = dict[str, Any]


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose files are those that were written.

    Attributes:
        path: the bundle's folder.
        manifest: the content of manifest.json (see `measure/schema/manifest.schema.json`).
    """

    path: Path
    manifest: dict[str, Any]

    def file(self, entry: Entry) -> Path:
        """Where a file of the manifest is."""
        return self.path / entry["path"]

    @property
    def report(self) -> dict[str, Any]:
        """The content of report.json."""
        return json.loads((self.path / "report.json").read_text(encoding="utf-8"))

    @property
    def artefacts(self) -> list[Entry]:
        """The files that a runtime loads, those with golden outputs."""
        return [entry for entry in self.manifest["artefacts"] if "golden" in entry]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for this network."""
        return Preprocessing.from_description(self.manifest["input"])


def open_bundle(folder: Path) -> OpenBundle:
    """Open a bundle and check every file of it.

    A replacement of its report that was killed half-way is finished first.

    Raises:
        InputError: no bundle, a newer schema, a path that leaves the bundle, or a file that is
            missing or not the one that was written; the message names the file.
    """
    path = folder / MANIFEST
    with suppress(OSError):  # then the hashes say that the bundle is not whole
        finish_replacing(folder)
    if not path.is_file():
        raise InputError(f"{folder} is no bundle: it has no {MANIFEST}")
    content = _read(folder, MANIFEST)
    manifest = _parse(content)
    if _read(folder, SEAL) != _seal(content):
        _refuse(MANIFEST, f"its sha256 is not that of {SEAL}")
    error = next(_validator().iter_errors(manifest), None)
    if error is not None:
        _refuse(MANIFEST, f"{error.json_path}: {error.message[:200]}")
    for entry in file_entries(manifest):
        check_file(folder, entry)
    return OpenBundle(folder, manifest)


def file_entries(manifest: Any) -> Iterator[Entry]:
    """Every file of a bundle: wherever the manifest has a path and its sha256 together."""
    if isinstance(manifest, dict):
        if {"path", "sha256"} <= manifest.keys():
            yield manifest
        manifest = list(manifest.values())
    if isinstance(manifest, list):
        for value in manifest:
            yield from file_entries(value)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        version = manifest["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{MANIFEST} is damaged ({error}): copy the bundle again") from error
    refuse_newer(MANIFEST, version, VERSION)
    return manifest


def refuse_newer(what: object, version: Any, known: int) -> None:
    """Raise InputError for a file whose schema is of a later cmt-export."""
    if isinstance(version, int) and version > known:
        raise InputError(
            f"{what} has schema {version}, this version reads up to {known}: update cmt-export"
        )


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _refuse(name: str, problem: str) -> NoReturn:
    raise InputError(f"{name} is not the file of this bundle ({problem}): copy the bundle again")


def _inside(folder: Path, name: str) -> Path:
    """The file's own place, if that is in the bundle, links followed."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or any(char in name for char in "\\:\0"):
        raise InputError(f"{MANIFEST} names '{name}', which is no path within a bundle")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' leads out of the bundle: copy the bundle again, links followed")
    return path


def _read(folder: Path, name: str) -> bytes:
    try:
        return _inside(folder, name).read_bytes()
    except OSError as error:
        _refuse(name, error.strerror or str(error))


def check_file(folder: Path, entry: Entry) -> None:
    """Raise InputError unless the file is there and the one that was written."""
    path = _inside(folder, entry["path"])
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            _refuse(entry["path"], f"{size} bytes in place of {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            _refuse(entry["path"], "its sha256 differs")
    except OSError as error:
        _refuse(entry["path"], error.strerror or str(error))


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def describe_file(root: Path, path: Path) -> Entry:
    """A file's entry in the manifest."""
    return {
        "path": path.relative_to(root).as_posix(),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }


def _seal(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json and its hash; last of all, for it says that the bundle is whole."""
    content = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SEAL).write_bytes(_seal(content))


def replace_report(bundle: OpenBundle, report: dict[str, Any]) -> None:
    """Put a new report into a bundle, and its hashes into the manifest.

    Raises:
        InputError: the report breaks its schema, or see `replacing_files`.
    """
    with replacing_files(bundle) as new:
        put_report(bundle, report, new)


def put_report(bundle: OpenBundle, report: dict[str, Any], folder: Path) -> None:
    """Write a report, and a bundle's manifest with its hashes, into a folder."""
    from measure.report import REPORT_FILES, write_report

    write_report(report, folder)
    entries = [describe_file(folder, folder / file) for file in REPORT_FILES]
    write_manifest(folder, {**bundle.manifest, "reports": entries})


@contextmanager
def replacing_files(bundle: OpenBundle) -> Iterator[Path]:
    """A folder whose files, a manifest among them, replace the bundle's when the block ends well.

    No other process may do so meanwhile.

    Raises:
        InputError: the bundle cannot be written to, another process is writing to it, or it has
            become another one since it was opened.
    """
    from filelock import Timeout

    try:
        with (
            lock(bundle.path / ".report.lock", WAITING_SECONDS),
            replacing(bundle.path) as new,
        ):
            current = _parse(_read(bundle.path, MANIFEST))
            if current | {"reports": []} != bundle.manifest | {"reports": []}:
                raise InputError(
                    f"{bundle.path} was replaced while it was measured: the same command measures "
                    "what is there now"
                )
            yield new
    except Timeout as error:
        raise InputError(f"another cmt-bench is writing to {bundle.path}: try again") from error
    except OSError as error:
        raise InputError(
            f"cannot write to {bundle.path} ({error.strerror}): copy the bundle to where you may"
        ) from error
