"""What workers say, checked before it is used: another version, or a fault, may say anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt import strict_json
from cmt.bundle.manifest import strict_validator
from cmt.bundle.reader import OpenBundle
from cmt.bundle.torch_answers import KEPT, Answers
from cmt.errors import InputError, MachineError
from cmt.measure.on_device import UNKNOWN, File, Shard
from cmt.report.document import report_of, validate
from cmt.report.rows import Machine

_TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}
_NUMBER = {"type": ["number", "null"]}
_TEXTS = {"type": "array", "items": {"type": "string", "maxLength": 5000}}
_ENVIRONMENT = {
    "type": "object",
    "required": ["cpu", "cpu_flags", "cores", "memory_gb", "gpu", "packages"],
    "properties": {
        "cpu": {"type": "string"},
        "cpu_flags": _TEXTS,
        "cores": {"type": "integer", "minimum": 1},
        "memory_gb": _NUMBER,
        "gpu": {"type": ["string", "null"]},
        "packages": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_CHECK = {
    "type": "object",
    "properties": {"name": _TEXT, "passed": {"type": ["boolean", "null"]}, "detail": _TEXT},
    "required": ["name", "passed", "detail"],
    "additionalProperties": False,
}
_FILE = {
    "type": "object",
    "properties": {
        "artefact": _TEXT,
        "device": {"type": "null"},
        "own": {"type": "object"},
        "batch": {"type": "integer", "minimum": 1, "maximum": 4096},
        "for_unknown": {"type": "boolean"},
    },
    "required": ["artefact", "device", "own", "batch", "for_unknown"],
    "additionalProperties": False,
}
_REPLIES: Mapping[str, Mapping[str, Any]] = {
    "introduce": {
        "version": _TEXT,
        "machine": {**_TEXT, "pattern": r"^[^\x00-\x1f\x7f]{1,200}$"},
        "tags": _TEXTS,
        "not_run": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "timing": {"type": "boolean"},
        "environment": _ENVIRONMENT,
    },
    "ready": {
        "checks": {"type": "array", "items": _CHECK, "minItems": 1},
        "files": {"type": "array", "items": _FILE},
        "reference": {"type": ["integer", "null"], "minimum": 0},
        "not_run": {"type": "object", "additionalProperties": _TEXT},
    },
    "wanted": {"wanted": {"type": "string"}},
    "missing": {"missing": {**_TEXTS, "minItems": 1}, "place": _TEXT},
    "refused": {"refused": {**_TEXTS, "minItems": 2, "maxItems": 2}},
}
"""By kind of reply its fields, all of which it has, and no others."""


@cache
def _validator(kind: str) -> Any:
    fields = _REPLIES[kind]
    closed = {"required": [*fields], "additionalProperties": False}
    return strict_validator({"type": "object", "properties": fields, **closed})


def parse(text: Any) -> Mapping[str, Any]:
    """The object that a worker replied; raises MachineError for what is none."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"a {type(text).__name__}")
        reply = strict_json.parse(text)
    except ValueError as error:
        raise MachineError(f"a worker's reply is no JSON ({error})") from error
    if not isinstance(reply, dict):
        raise MachineError("a worker's reply is no object")
    return reply


def is_reply(kind: str, reply: Mapping[str, Any]) -> bool:
    """Whether a reply is of this kind, with fields of the right types."""
    return bool(_validator(kind).is_valid(reply))


def require(kind: str, reply: Mapping[str, Any]) -> None:
    """Raise MachineError, naming the field, for what is no reply of this kind."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator(kind).iter_errors(reply))
    if error is not None:
        place = error.json_path.replace("$", "reply", 1)
        raise MachineError(f"a worker's reply is unusable: {place}: {error.message[:200]}")


def files_of_reply(bundle: OpenBundle, reply: Mapping[str, Any]) -> tuple[list[File], File | None]:
    """(files that accuracy is asked of, the reference among them) of a `ready`."""
    entries = {artefact["path"]: artefact for artefact in bundle.artefacts}
    try:
        files = [File(**{**one, "artefact": entries[one["artefact"]]}) for one in reply["files"]]
        reference = None if reply["reference"] is None else files[reply["reference"]]
    except (KeyError, IndexError) as error:
        raise MachineError(f"a worker has files that the bundle has not ({error})") from error
    return files, reference


def entry_of_reply(bundle: OpenBundle, reply: Any, machine: str, command: str) -> Machine:
    """The report's entry of a machine, which keeps every promise of the report's format."""
    try:
        validate({**report_of(bundle), "machines": [reply]})
    except InputError as error:
        raise MachineError(f"what {machine} measured is unusable: {error}") from error
    paths = {artefact["path"] for artefact in bundle.artefacts}
    rows: Sequence[Any] = reply["results"]
    if {row["artefact"] for row in rows} - paths or any(row["accuracy"] for row in rows):
        raise MachineError(f"what {machine} measured is unusable: it is not what was asked")
    if (reply["machine"], reply["command"]) != (machine, command):
        raise MachineError(f"what {machine} measured is unusable: it was asked by another command")
    return reply


def shard_of_reply(
    reply: Mapping[str, Any],
    files: Sequence[File],
    asked: NDArray[np.int64],
    rows: NDArray[np.int64],
    answers: Answers,
    labels: int,
) -> Shard:
    """The arrays of a worker's answers, its places those of the source.

    Args:
        asked: places of the images in the source.
        rows: theirs among torch's answers, by the sha256 that is known here.
        labels: how many classes the bundle names; 0 where it names none.

    Raises:
        MachineError: an array is missing, of another shape, or has what no answer can be.
    """
    try:
        read = np.array(reply["places"], np.int64)
        ascending = read.ndim == 1 and (np.diff(read) > 0).all()
        if not ascending or (len(read) and not (read[0] >= 0 and read[-1] < len(asked))):
            raise ValueError("places")
        skipped = [str(line)[:1000] for line in reply["skipped"]]
        if len(skipped) + len(read) != len(asked) or reply["rows"] != rows[read].tolist():
            raise ValueError("images")
        shard: Shard = {
            "places": asked[read],
            "rows": rows[read],
            "skipped": np.array(skipped, np.str_),
        }
        for i, file in enumerate(files) if len(read) else ():
            first = _matrix(reply[f"first{i}"], np.int32, len(read))
            kept = 1 if file.for_unknown else min(KEPT, labels or KEPT)
            most = labels or np.iinfo(np.int32).max
            if first.shape[1] > kept or first.min() < UNKNOWN or first.max() >= most:
                raise ValueError(f"first{i}")
            shard[f"first{i}"] = first
            if len(answers.classes) and f"beside{i}" in reply:
                beside = _matrix(reply[f"beside{i}"], np.float32, len(read))
                if beside.shape[1] != answers.classes.shape[1]:
                    raise ValueError(f"beside{i}")
                shard[f"beside{i}"] = beside
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise MachineError(f"a worker's answers are unusable ({error})") from error
    return shard


def _matrix(value: Any, dtype: type[np.generic], rows: int) -> NDArray[Any]:
    array = np.array(value)
    if array.ndim != 2 or len(array) != rows or not array.shape[1]:
        raise ValueError(f"the shape {array.shape}")
    made = array.astype(dtype)
    lost = array.dtype.kind == "i" and (made != array).any()  # of a larger integer
    if array.dtype.kind != np.dtype(dtype).kind or lost or not np.isfinite(made).all():
        raise ValueError(f"the type {array.dtype}")
    return made
