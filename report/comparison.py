"""Reports of several bundles and machines, merged into one comparison."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from cmt.bundle.manifest import MANIFEST, refuse
from cmt.bundle.reader import open_bundle, read_text
from cmt.bundle.replacing import newest
from cmt.bundle.signature import check, expect_run
from cmt.errors import InputError
from cmt.printing import printable
from cmt.report.document import (
    REPORT_FILES,
    parse_report,
    read_report,
    report_of,
    schema_problems,
)
from cmt.report.figures import decimal, is_simulated, row_name
from cmt.report.policy import Clause
from cmt.report.rows import (
    ComparedRow,
    Comparison,
    Machine,
    MeasuredRow,
    Origin,
    Report,
    Row,
    SourceRow,
)
from cmt.targets.machine import Hardware, hardware
from cmt.targets.settings import CPU, CUDA_GRAPH, DEVICE, STREAMS

VERSION = 1


@dataclass(frozen=True)
class Source:
    """A report and where it comes from; `machine` made it."""

    path: Path
    machine: str
    report: Report
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trust:
    """Whose reports are believed.

    Attributes:
        key: Ed25519 public key in PEM, of who signed the bundles.
        runs: identities of the exports that the bundles may be of; none stands for any.
    """

    key: Path
    runs: Sequence[str] = ()


def read_source(argument: str, trust: Trust | None = None) -> Source:
    """A bundle, or its report.json alone; `NAME=PATH` names the machine that exported it.

    Without a name, that machine is called by its processor.

    Args:
        trust: takes what was signed alone: the rows of the exporting machine, of a bundle whose
            files are all whole.

    Raises:
        InputError: no report there, or one that is damaged, breaks its schema or is not trusted.
    """
    name, equals, rest = argument.partition("=")
    if not (name and equals) or Path(argument).exists():
        name, rest = "", argument
    if not rest:  # which as a path would be the current folder
        raise InputError(f"'{argument}' names no report: give a bundle or its report.json")
    path = Path(rest)
    report, warnings = (_read(path), ()) if trust is None else _read_trusted(path, trust)
    environment = report["environment"]
    machine = name or " + ".join(filter(None, (environment["cpu"], environment["gpu"])))
    return Source(path, printable(machine), report, warnings)


def _read(path: Path) -> Report:
    """A report.json, which is the one of its bundle where the folder is one."""
    if not path.is_dir():
        return read_report(path)
    if newest(path, MANIFEST).exists():
        return report_of(open_bundle(path, only=REPORT_FILES[:1]))
    return read_report(path / REPORT_FILES[0])


def _read_trusted(path: Path, trust: Trust) -> tuple[Report, tuple[str, ...]]:
    if path.is_file():
        raise InputError(f"{path} is signed with its bundle alone: give that folder to --trust")
    bundle = check(open_bundle(path), trust.key)
    expect_run(bundle, trust.runs)
    entry = bundle.manifest.get("exported")
    if entry is None:
        raise InputError(f"the signature of {path} does not cover its report: export it again")
    content = read_text(path, entry["path"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        refuse(entry["path"], "its sha256 differs")
    added = [printable(one["machine"]) for one in report_of(bundle).get("machines", [])]
    left_out = f"{path}: what cmt-bench measured on {', '.join(added)} is not signed: left out"
    return parse_report(content, path / entry["path"]), (left_out,) if added else ()


def merge(sources: Sequence[Source], mix_images: bool = False) -> Comparison:
    """The content of comparison.json: every row of every report, with its machine's name.

    Rows of cmt-bench take the accuracy of the same file in the same report, and say where from.
    Copies of one bundle that were measured on several machines count as one.

    Args:
        mix_images: accept accuracies on different validation images; a warning says so.

    Raises:
        InputError: different validation images, or two machines under one name.
    """
    warnings = [line for source in sources for line in source.warnings]
    warnings += _image_warnings(sources, mix_images)
    rows: list[ComparedRow] = []
    for i, source in enumerate(sources):
        for row in _source_rows(source):
            if not any(_same_measurement(row, other) for other in rows):
                rows.append({"report": i, **row, "name": _file_name(row)})
    _refuse_same_names(rows)
    _name(rows)
    warnings += _other_counts(rows, sources)
    return {
        "schema": VERSION,
        "warnings": warnings,
        "reports": [_describe(source) for source in sources],
        "rows": rows,
        "requirements": None,
    }


def _other_counts(rows: Sequence[ComparedRow], sources: Sequence[Source]) -> list[str]:
    """A warning for each machine whose own accuracy is of fewer images than the export's."""
    found = {}
    for row in rows:
        usual = sources[row["report"]].report["images"]["validation"]
        if "beside_torch" in row and row["accuracy"] and row["accuracy"]["images"] != usual:
            machine, images = row["machine"], row["accuracy"]["images"]
            found[machine, images] = (
                f"accuracies on {machine} are of {images:,} images, the export's of {usual:,}"
            )
    return list(found.values())


def _describe(source: Source) -> SourceRow:
    report = source.report
    return {
        "path": str(source.path),
        "machine": source.machine,
        "created": report["created"],
        "command": report["command"],
        "variant": report["variant"],
        "family": report["family"],
        "img_size": report["img_size"],
        "weights": report["weights"],
        "images": report["images"],
        "max_drop_pp": report["gates"]["max_drop_pp"],
    }


def _image_warnings(sources: Sequence[Source], mix_images: bool) -> list[str]:
    """A warning where the accuracies are of different images and that is accepted."""
    seen: dict[str | None, Source] = {}
    for source in sources:
        rows = [source.report["baseline"], *source.report["results"]]
        if any(row["accuracy"] for row in rows):
            seen.setdefault(source.report["images"]["validation_sha256"], source)
    if len(seen) < 2:
        return []
    first, other = list(seen.values())[:2]
    which = " and ".join(
        f"{s.path} ({s.report['images']['validation']:,} images of {s.report['images']['source']})"
        for s in (first, other)
    )
    if not mix_images:
        raise InputError(
            f"{which} have different validation images, so their accuracies cannot be compared: "
            "export with the same --val-data and --val-count, or accept it with --mix-images"
        )
    return [f"accuracies are of different validation images: {which}"]


def _source_rows(source: Source) -> Iterator[MeasuredRow]:
    report = source.report
    here = _origin(source, report, source.machine, report["created"])
    accuracies: dict[tuple[str, str], Row] = {}
    for row in (report["baseline"], *report["results"]):
        accuracies[row["target"], row["precision"]] = row
        yield {
            **here,
            "accuracy_from": _accuracy_from(source, row),
            **row,
            "simulated": is_simulated(row),
        }
    for entry in report.get("machines", []):
        there = _origin(source, entry, printable(entry["machine"]), entry["measured"])
        for row in entry["results"]:
            merged: MeasuredRow = {**there, "accuracy_from": None, **row, "simulated": False}
            origin = accuracies.get((row["target"], row["precision"]))
            if row["accuracy"] is not None and row["accuracy"]["drop_pp"] is not None:
                merged["accuracy_from"] = f"{there['machine']}, {row['measured_by']}"
            elif (
                origin is not None and origin["artefact"] == row["artefact"] and origin["accuracy"]
            ):
                merged["accuracy_from"] = _accuracy_from(source, origin)
                merged["simulated"] = is_simulated(origin)
                merged["accuracy"] = origin["accuracy"]
                merged["reasons"] = {k: v for k, v in row["reasons"].items() if k != "accuracy"}
            yield merged


def _origin(source: Source, entry: Report | Machine, machine: str, measured: str) -> Origin:
    network, where = source.report, entry["environment"]
    return {
        "machine": machine,
        "measured": measured,
        "variant": network["variant"],
        "weights_sha256": network["weights"]["sha256"],
        "cpu": where["cpu"],
        "cpu_flags": where["cpu_flags"],
        "cores": where["cores"],
        "memory_gb": where["memory_gb"],
        "gpu": where["gpu"],
    }


def _accuracy_from(source: Source, row: Row) -> str | None:
    return f"{source.machine}, {row['measured_by']}" if row["accuracy"] else None


def _same_measurement(row: MeasuredRow, other: ComparedRow) -> bool:
    return all(value == other.get(key) for key, value in row.items())


def _refuse_same_names(rows: Sequence[ComparedRow]) -> None:
    known: dict[str, ComparedRow] = {}
    for row in rows:
        first = known.setdefault(row["machine"], row)
        if hardware(row) != hardware(first):
            raise InputError(
                f"two machines are called '{row['machine']}' ({_hardware(first)} and "
                f"{_hardware(row)}): measure one again with another cmt-bench "
                "--machine, or call the one that exported NAME=PATH"
            )


def _hardware(row: Hardware) -> str:
    return f"{row['cpu']}, {row['cores']} cores, {decimal(row['memory_gb'])} GB"


def _file_name(row: MeasuredRow) -> str:
    return f"{row['variant']} {row_name(row)}" + (" *" if is_simulated(row) else "")


def _name(rows: Sequence[ComparedRow]) -> None:
    """Add to each row's `name` those settings that its machine varied.

    Rows of one machine that would still have one name say their weights, then their time.
    """
    file = itemgetter("machine", "variant", "weights_sha256", "target", "precision", "artefact")
    for row in rows:
        same = [other["settings"] for other in rows if file(other) == file(row)]
        settings = (
            ("batch", "batch", 1),
            ("threads", "threads", 1),
            (STREAMS, "streams", 1),
            (CUDA_GRAPH, "CUDA graph", 1),
            (DEVICE, "device", CPU),
        )
        varied = [
            f"{title} {row['settings'].get(key, usual)}"
            for key, title, usual in settings
            if len({one.get(key, usual) for one in same}) > 1
        ]
        row["name"] = ", ".join([row["name"], *varied])
    _tell_apart(rows, lambda row: f"weights {(row['weights_sha256'] or 'random')[:8]}")
    _tell_apart(rows, lambda row: f"measured {row['measured']}")
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        seen[row["machine"], row["name"]] += 1
        if (number := seen[row["machine"], row["name"]]) > 1:
            row["name"] += f", row {number}"


def _tell_apart(rows: Sequence[ComparedRow], words: Callable[[ComparedRow], str]) -> None:
    """Add the words to the names of a machine's rows that have one name but not one word."""
    said: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        said.setdefault((row["machine"], row["name"]), set()).add(words(row))
    for row in rows:
        if len(said[row["machine"], row["name"]]) > 1:
            row["name"] += f", {words(row)}"


def choose(comparison: Comparison, machines: Sequence[str], files: Sequence[str]) -> Comparison:
    """The comparison with the rows of these machines and files (`openvino/int8`) alone.

    Raises:
        InputError: a name that no row has.
    """

    def kept(row: ComparedRow) -> bool:
        return (not machines or row["machine"] in machines) and (not files or _file(row) in files)

    rows = comparison["rows"]
    for option, asked, present in (
        ("--machine", machines, [row["machine"] for row in rows]),
        ("--file", files, [_file(row) for row in rows]),
    ):
        unknown = [name for name in asked if name not in present]
        if unknown:
            known = ", ".join(dict.fromkeys(present))
            raise InputError(f"{option}: no row is called '{unknown[0]}': there are {known}")
    chosen = [row for row in rows if kept(row)]
    if not chosen:
        raise InputError("no row is of these machines and of these files: leave one option out")
    return {**comparison, "rows": chosen}


def _file(row: Row) -> str:
    return f"{row['target']}/{row['precision']}"


def machine_names(comparison: Comparison) -> list[str]:
    """The machines that rows are of, each once."""
    return list(dict.fromkeys(row["machine"] for row in comparison["rows"]))


def require(
    comparison: Comparison, clauses: Sequence[Clause], machines: Sequence[str]
) -> Comparison:
    """The comparison with its `requirements`: on each machine, some file keeps every clause.

    Where none does, every clause that fails is named, file by file; where one is kept and the
    figure's interval reaches beyond its limit, a warning says so.

    Args:
        machines: all that must have such a file, those that `choose` left no row of included.
    """
    passed, failures, doubts = [], [], []
    by_machine = files_by_machine(comparison)
    for machine in machines:
        rows = by_machine.get(machine, [])
        if not rows:
            failures.append(f"{machine}: has no such file")
        broken = [(row["name"], [f for c in clauses if (f := c.failure(row))]) for row in rows]
        good = [name for name, problems in broken if not problems]
        kept = [(row, c) for row in rows if row["name"] in good for c in clauses]
        doubts += [f"{machine}: {row['name']}: {d}" for row, c in kept if (d := c.doubt(row))]
        passed += [f"{machine}: {name}" for name in good]
        if not good:
            failures += [
                f"{machine}: {name}: {problem}" for name, problems in broken for problem in problems
            ]
    texts = [clause.text for clause in clauses]
    return {
        **comparison,
        "warnings": [*comparison["warnings"], *doubts],
        "requirements": {"clauses": texts, "kept_by": passed, "failures": failures},
    }


def to_json(comparison: Comparison) -> str:
    """The text of comparison.json.

    Raises:
        InputError: the comparison breaks `report/schema/comparison.schema.json`.
    """
    for problem in schema_problems("comparison", comparison):
        raise InputError(f"the comparison is unusable: {problem}")
    return json.dumps(comparison, indent=1, allow_nan=False)


def files_by_machine(comparison: Comparison) -> dict[str, list[ComparedRow]]:
    """The rows of exported files, by machine."""
    found: dict[str, list[ComparedRow]] = {}
    for row in comparison["rows"]:
        if row["artefact"] is not None:
            found.setdefault(row["machine"], []).append(row)
    return found
