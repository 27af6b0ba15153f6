"""What manifest.json may say; `runtime/cpp/src/bundle.cpp` keeps the same rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypedDict, cast

import numpy as np

from cmt import strict_json
from cmt.calib_data.image_range import is_range
from cmt.calib_data.preprocessing import Description
from cmt.errors import InputError
from cmt.targets.entries import Entry, FileEntry

MANIFEST = "manifest.json"


SEAL = "manifest.json.sha256"
"""The manifest's own hash, in the form that `sha256sum --check` reads."""


VERSION = 1


DAMAGED = "{file} is damaged ({error}): copy the bundle again"


SCHEMA = Path(__file__).parent / "schema" / "manifest.schema.json"


class Input(Description):
    name: str


class GoldenInputs(TypedDict):
    images: FileEntry
    photo: FileEntry
    pixels: FileEntry
    max_grey_levels: int


class Calibration(TypedDict):
    images: int
    sha256: str | None


class Licence(TypedDict):
    toolchain: str
    weights: str
    images: str


class _Manifest(TypedDict):
    schema: int
    variant: str
    family: str
    input: Input
    outputs: list[str]
    labels: list[str]
    artefacts: list[Entry]
    golden: GoldenInputs
    reports: list[FileEntry]
    calibration: Calibration
    environment: Mapping[str, object]
    licence: Licence


class Manifest(_Manifest, total=False):
    """manifest.json; `SCHEMA` says what each field means."""

    exported: FileEntry
    sbom: FileEntry
    config: FileEntry
    run: str


def file_entries(manifest: Any) -> Iterator[FileEntry]:
    """Every mention of a file: wherever the manifest has a path and its sha256 together."""
    if isinstance(manifest, dict):
        if {"path", "sha256"} <= manifest.keys():
            yield cast(FileEntry, manifest)
        manifest = list(manifest.values())
    if isinstance(manifest, list):
        for value in manifest:
            yield from file_entries(value)


def files_of(manifest: Manifest) -> list[FileEntry]:
    """Every file of a bundle once, however often the manifest names it."""
    return list({entry["path"]: entry for entry in file_entries(manifest)}.values())


def parse_manifest(content: bytes) -> Manifest:
    """The content of manifest.json; raises InputError for all that this version cannot follow."""
    manifest = parse_versioned(content, MANIFEST, VERSION, DAMAGED)
    problem = next(_problems(manifest), None)
    if problem is not None:
        refuse(MANIFEST, problem)
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """What breaks the schema, then what a schema cannot say."""
    for error in _validator().iter_errors(manifest):
        yield f"{error.json_path}: {error.message}"
    yield from _file_problems(manifest)
    described = manifest["input"]
    crop, box = described["crop"]["size"], described["resize"]["box"]
    first = 1 if described["layout"] == "NHWC" else 2
    if described["shape"][first : first + 2] != crop:
        yield "the input's shape is not that of the crop"
    if crop[0] > box[0] or crop[1] > box[1]:
        yield "the crop is larger than what is resized to"
    low, high = described.get("image_range", [0.0, 1.0])
    if not is_range(float(low), float(high)):
        yield "image_range does not rise, or is not finite"
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
        golden: Mapping[str, Any] = artefact.get("golden", {})
        kinds = [golden[key] for key in ("outputs", "outputs_f32") if key in golden]
        if any(len(entries) != len(manifest["outputs"]) for entries in kinds):
            yield f"golden outputs of {artefact['path']} do not match the outputs"


def _file_problems(manifest: Manifest) -> Iterator[str]:
    known: dict[str, dict[str, object]] = {}
    for entry in file_entries(manifest):
        described = {key: entry.get(key) for key in ("path", "bytes", "sha256")}
        if not follows("file", described):  # the environment may hold anything
            yield f"{str(entry['path'])[:40]} has a sha256 and is no file of a bundle"
        elif not is_within(entry["path"]):
            yield f"it names '{entry['path']}', which is no path within a bundle"
        elif known.setdefault(entry["path"], described) != described:
            yield f"{entry['path']} is there twice, with different contents"


def is_within(name: str) -> bool:
    """Whether a path, relative to the bundle's folder, goes down from there, on any system."""
    return not {"", ".", ".."} & {*name.split("/")} and not any(char in name for char in "\\:\0")


def follows(definition: str, value: Any) -> bool:
    """Whether a value is what the manifest's schema defines under this name, such as `text`."""
    validator = _validator()
    definitions = validator.schema["$defs"]
    schema = {"$defs": definitions, "$ref": f"#/$defs/{definition}"}
    return validator.evolve(schema=schema).is_valid(value)


def seal_of(manifest: bytes) -> bytes:
    """What belongs into `SEAL`, given the bytes of manifest.json."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def parse_versioned(content: bytes, file: object, known: int, damaged: str) -> Any:
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


def refuse(name: str, problem: str) -> NoReturn:
    """Raise InputError for a file that is not what the bundle's maker wrote."""
    raise InputError(
        f"{name[:200]} is not the file of this bundle ({problem[:200]}): copy the bundle again"
    )
