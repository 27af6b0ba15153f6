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

import numpy as np

from calib_data.preprocessing import Preprocessing
from cmt import strict_json
from cmt.errors import InputError
from measure.locking import lock
from measure.replacing import finish_replacing, replacing

MANIFEST = "manifest.json"
SEAL = "manifest.json.sha256"
"""The manifest's own hash, in the form that `sha256sum --check` reads."""
VERSION = 1
DAMAGED = "{file} is damaged ({error}): copy the bundle again"
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
        """The content of report.json; raises InputError where it breaks its schema."""
        from measure.report import read_report

        return read_report(self.path / "report.json")

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
    manifest = parse_manifest(content)
    if _read(folder, SEAL) != _seal(content):
        _refuse(MANIFEST, f"its sha256 is not that of {SEAL}")
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


def parse_manifest(content: bytes) -> dict[str, Any]:
    """The content of manifest.json; raises InputError for all that this version cannot follow."""
    manifest = parse_versioned(content, MANIFEST, VERSION, DAMAGED)
    problem = next(_problems(manifest), None)
    if problem is not None:
        _refuse(MANIFEST, problem)
    return manifest


def _problems(manifest: dict[str, Any]) -> Iterator[str]:
    """What breaks the schema, then what a schema cannot say."""
    for error in _validator().iter_errors(manifest):
        yield f"{error.json_path}: {error.message}"
    described = manifest["input"]
    crop, box = described["crop"]["size"], described["resize"]["box"]
    first = 1 if described["layout"] == "NHWC" else 2
    if described["shape"][first : first + 2] != crop:
        yield "the input's shape is not that of the crop"
    if crop[0] > box[0] or crop[1] > box[1]:
        yield "the crop is larger than what is resized to"
    tolerances = [a["golden"]["max_rel"] for a in manifest["artefacts"] if "golden" in a]
    with np.errstate(over="ignore", under="ignore"):
        scales = np.array([*described["std"], *tolerances], np.float32)
        means = np.array(described["mean"], np.float32)
    if not (np.isfinite(means).all() and np.isfinite(scales).all() and (scales > 0).all()):
        yield "mean, std and max_rel must be finite in single precision, the last two positive"
    for artefact in manifest["artefacts"]:
        least, usual, most = artefact.get("batches", [described["shape"][0]] * 3)
        if not least <= usual == described["shape"][0] <= most:
            yield f"the batches of {artefact['path']} do not rise around the input's"
        if "golden" in artefact and len(artefact["golden"]["outputs"]) != len(manifest["outputs"]):
            yield f"golden outputs of {artefact['path']} do not match the outputs"


def parse_versioned(content: bytes, file: object, known: int, damaged: str) -> dict[str, Any]:
    """A JSON object with a schema version, which is still to be held against its schema.

    Args:
        known: the latest schema version that this program reads.
        damaged: the message for what is no such object, with `{file}` and `{error}`.

    Raises:
        InputError: no JSON object with a `schema`, or one of a later cmt-export.
    """
    try:
        value = strict_json.parse(content)
        version = value["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(damaged.format(file=file, error=error)) from error
    if isinstance(version, int) and version > known:
        raise InputError(
            f"{file} has schema {version}, this version reads up to {known}: update cmt-export"
        )
    return value


@cache
def _validator() -> Any:
    return strict_validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def strict_validator(schema: dict[str, Any], registry: Any = None) -> Any:
    """A validator to which 1.0 is no integer: a C++ reader takes none for one either."""
    from jsonschema import Draft202012Validator, validators

    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    kind = validators.extend(Draft202012Validator, type_checker=checker)
    return kind(schema) if registry is None else kind(schema, registry=registry)


def _refuse(name: str, problem: str) -> NoReturn:
    raise InputError(
        f"{name[:200]} is not the file of this bundle ({problem[:200]}): copy the bundle again"
    )


def inside(folder: Path, name: str) -> Path:
    """The file's own place, if that is in the bundle, links followed."""
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or any(char in name for char in "\\:\0"):
        raise InputError(f"{MANIFEST} names '{name}', which is no path within a bundle")
    try:
        path = (folder / name).resolve()
        is_odd = path.exists() and not path.is_file()
    except (OSError, RuntimeError, UnicodeError) as error:  # links in a circle, odd characters
        _refuse(name, str(error))
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"'{name}' leads out of the bundle: copy the bundle again, links followed")
    if is_odd:  # reading a pipe would never end
        _refuse(name, "it is no file")
    return path


def _read(folder: Path, name: str) -> bytes:
    try:
        return strict_json.read(inside(folder, name))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        _refuse(name, str(error))


def check_file(folder: Path, entry: Entry) -> None:
    """Raise InputError unless the file is there and the one that was written."""
    path = inside(folder, entry["path"])
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
    content = strict_json.dump(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SEAL).write_bytes(_seal(content))


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
            current = parse_manifest(_read(bundle.path, MANIFEST))
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
