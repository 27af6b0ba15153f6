"""What is declared of reports and manifests is what their schemas say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from operator import getitem
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from cmt.bundle.manifest import SCHEMA, Manifest
from cmt.measure import statistics
from cmt.report.document import SCHEMAS
from cmt.report.rows import Accuracy, Comparison, Report

SCHEMA_FILES = {
    path.name: json.loads(path.read_text("utf-8")) for path in (SCHEMA, *SCHEMAS.glob("*.json"))
}


def parts(file: str, node: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all that it refers to, each with the file that it is in."""
    yield file, node
    for one in (node, *node.get("oneOf", ())):
        if "$ref" in one:
            other, _, place = one["$ref"].partition("#/")
            root = SCHEMA_FILES[other or file]
            yield from parts(other or file, reduce(getitem, place.split("/"), root))


def differences(place: str, kind: Any, file: str, node: dict[str, Any]) -> Iterator[str]:
    """Where a declared type and a schema name other fields, or require others, at any depth."""
    layers = list(parts(file, node))
    stated = {k: (f, v) for f, layer in layers for k, v in layer.get("properties", {}).items()}
    required = {name for _, layer in layers for name in layer.get("required", ())}
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        if (odd := hints.keys() ^ stated.keys()) or (odd := kind.__required_keys__ ^ required):
            yield f"{place}: {sorted(odd)}"
        for name in hints.keys() & stated.keys():
            yield from differences(f"{place}.{name}", hints[name], *stated[name])
    elif get_args(kind) and NoneType in get_args(kind):
        for one in set(get_args(kind)) - {NoneType}:
            yield from differences(place, one, file, node)
    elif required:
        yield f"{place}: {sorted(required)}"
    elif get_origin(kind) in (list, dict):
        within = "items" if get_origin(kind) is list else "additionalProperties"
        for where, layer in layers:
            if isinstance(layer.get(within), dict):
                yield from differences(f"{place}[]", get_args(kind)[-1], where, layer[within])


@pytest.mark.parametrize(
    ("kind", "name"), [(Report, "report"), (Comparison, "comparison"), (Manifest, "manifest")]
)
def test_what_is_declared_is_what_the_schema_says(kind: type, name: str) -> None:
    file = f"{name}.schema.json"
    assert list(differences(name, kind, file, SCHEMA_FILES[file])) == []


def test_an_accuracy_is_written_with_the_fields_that_it_is_measured_with() -> None:
    assert {field.name for field in fields(statistics.Accuracy)} == get_type_hints(Accuracy).keys()
