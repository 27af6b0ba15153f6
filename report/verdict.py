"""Report figures as words: how numbers are rounded, and the verdict that they lead to.

The sentences are plain text; each page format escapes what it prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from cmt.report.figures import (
    NOT_MEASURED,
    count,
    device_text,
    drop_text,
    interval,
    is_simulated,
    megabytes,
    milliseconds,
    p50,
    percent,
    points,
    reason,
    resolvable,
    row_name,
    run_time,
    speedup_text,
)
from cmt.report.rows import Accuracy, Layers, Report, Row, Speedup, Timing, Tuning
from cmt.targets.base import PRECISIONS, Prediction
from cmt.targets.settings import CUDA_GRAPH

R = TypeVar("R", bound=Row)

LEAST_INT8 = 0.5
"""Share of a file's INT8 layers; where fewer ran in INT8, it is said."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict; `tone` is good, bad or plain."""

    text: str
    tone: str = "plain"


# --- the verdict ----------------------------------------------------------------------------


def _speed_against(speedup: Speedup, other: str) -> str:
    low, high = speedup["ci95"]
    if low > 1:
        return f"{speedup_text(speedup)} as fast as {other}"
    if high < 1:
        return f"slower than {other} ({speedup_text(speedup)} its speed)"
    return f"about as fast as {other} ({speedup_text(speedup)})"


def _speed_clause(row: Row) -> str:
    if row["latency_ms"] is None:
        return f"was not timed: {reason(row, 'latency_ms')}"
    comparisons = [
        _speed_against(speedup, other)
        for speedup, other in (
            (row["speedup_vs_baseline"], "torch"),
            (row["speedup_vs_fp32_graph"], "the FP32 file"),
        )
        # The FP32 file is exactly as fast as itself, which is no finding.
        if speedup is not None and speedup["ci95"] != [1, 1]
    ]
    if not comparisons:
        return f"takes {milliseconds(p50(row))} ms at the median"
    return "is " + " and ".join(comparisons)


def over_limit(row: Row, limit: float | None) -> bool:
    """The row's top-1 dropped by more than the limit, in points; not so where either is None."""
    drop = row["accuracy"] and row["accuracy"]["drop_pp"]
    return limit is not None and drop is not None and drop > limit


def accuracy_sentence(row: Row, limit: float | None) -> str:
    """What is known of a row's top-1, beside the accepted drop in points."""
    accuracy = row["accuracy"]
    if accuracy is None:
        return f"Accuracy was not measured: {reason(row, 'accuracy')}."
    images = f"{count(accuracy['images'])} images"
    drop, bounds = accuracy["drop_pp"], accuracy["drop_ci95"]
    if drop is None or bounds is None:
        words = f"measured on {images}"
    elif bounds[0] > 0:
        words = f"a drop of {percent(drop)} points{interval(bounds)} on {images}"
    elif bounds[1] < 0:
        words = f"a gain of {percent(-drop)} points (drop{interval(bounds)}) on {images}"
    else:
        smallest = resolvable(accuracy)
        shown = f"; one of {smallest} would show" if smallest != NOT_MEASURED else ""
        words = (
            f"no drop that {images} can resolve ({points(drop)} points{interval(bounds)}{shown})"
        )
    over = f", over the limit of {percent(limit)} points" if over_limit(row, limit) else ""
    simulated = " (simulated)" if is_simulated(row) else ""
    return f"Top-1 is {percent(accuracy['top1'])} %{simulated}, {words}{over}."


def _describe(row: Row, limit: float | None) -> Finding:
    text = f"{row_name(row)} {_speed_clause(row)}. {accuracy_sentence(row, limit)}"
    return Finding(text, "bad" if over_limit(row, limit) else "plain")


def _rival(row: Row, rows: Iterable[Row]) -> tuple[Speedup, Row] | None:
    """The best of its target's files in wider precisions, unless a file is faster for certain.

    INT8 is held against FP16 too, by their ratios to the FP32 file of the same rounds.
    """
    mine = row["speedup_vs_fp32_graph"]
    wider = PRECISIONS[: PRECISIONS.index(row["precision"])]
    rivals = [
        (speedup, other)
        for other in rows
        if other["target"] == row["target"]
        and other["precision"] in wider
        and (speedup := other["speedup_vs_fp32_graph"]) is not None
    ]
    if mine is None or not rivals:
        return None
    best, rival = max(rivals, key=lambda pair: pair[0]["ratio"])
    return None if mine["ci95"][0] > best["ci95"][1] else (best, rival)


def _precision_that_does_not_pay(rows: Sequence[Row]) -> Iterator[Finding]:
    """Where rounding was paid for and bought no speed: say so and name the file to take."""
    for row in rows:
        mine, found = row["speedup_vs_fp32_graph"], _rival(row, rows)
        if mine is None or found is None:
            continue
        best, rival = found
        slower = mine["ci95"][1] < best["ci95"][0]
        how = "slower" if slower else "no faster, as far as can be told,"
        yield Finding(
            f"{row_name(row)} is {how} than {row_name(rival)} here: {speedup_text(mine)} the speed "
            f"of the FP32 file against {speedup_text(best)}. {rival['artefact']} is the file to "
            "take.",
            "bad",
        )


def _predictions(report: Report) -> Iterator[Finding]:
    """Of files that were not timed: which is predicted to be the faster one, and why."""
    for row in report["results"]:
        own = row.get("predicted")
        wider = PRECISIONS[: PRECISIONS.index(row["precision"])]
        rivals = [
            (other["predicted"], other)
            for other in report["results"]
            if other["target"] == row["target"] and other["precision"] in wider
            if "predicted" in other and p50(other) is None
        ]
        if own is None or p50(row) is not None or not rivals:
            continue
        other, rival = min(rivals, key=lambda pair: pair[0]["ms"])
        loses = own["ms"] > other["ms"]
        best = rival if loses else row
        yield Finding(
            f"{row_name(row)} is predicted to take {milliseconds(own['ms'])} ms on an NVIDIA "
            f"{own['gpu']}, {row_name(rival)} {milliseconds(other['ms'])} ms: it "
            f"{_more(own, other)}. Ship {best['artefact'] or row_name(best)}. Predicted from the "
            "builder's record of layers; nothing of it was measured.",
            "bad" if loses else "plain",
        )


def _more(own: Prediction, other: Prediction) -> str:
    """What speaks for or against a file beside another, in words."""
    moved = (megabytes(found["moved"]) for found in (own, other))
    return (
        f"moves {' against '.join(moved)}, in {count(own['launches'])} launches against "
        f"{count(other['launches'])}"
    )


def fastest(rows: Iterable[R], limit: float | None) -> R | None:
    """The exported file with the lowest median latency that keeps the accuracy limit.

    Not one that rounding made no faster for certain: then the wider file is the one to take.
    """
    timed = [
        row
        for row in rows
        if p50(row) is not None and row["artefact"] and not over_limit(row, limit)
    ]
    best = min(timed, key=lambda row: p50(row) or 0, default=None)
    while best is not None and (found := _rival(best, timed)) is not None:
        best = cast(R, found[1])
    return best


def headline(report: Report) -> str:
    """The verdict in one or two sentences."""
    gates = report["gates"]
    if gates["passed"] is False:
        number = len(gates["failures"])
        checks = "1 check" if number == 1 else f"{number} checks"
        return f"{checks} failed. Do not use the files that are named here."
    row = fastest(report["results"], gates["max_drop_pp"])
    if row is None:
        checks = "All checks passed" if gates["passed"] else "Accuracy was not checked"
        if unconfirmed(report):
            checks = "The accuracy limit is not confirmed"
        return f"{checks}. No exported file was timed on this machine."
    takes = f"{run_time(row)} at the median"
    cost = _cost_clause(row["accuracy"])
    if busy(row):
        return (
            "This machine was busy while files were timed, so that speeds are not to be trusted: "
            f"which file is the fastest is open ({row['artefact']} took {takes}, {cost})."
        )
    speedup = row["speedup_vs_baseline"]
    if speedup is None:
        return f"Ship {row['artefact']} on this machine: {takes}, {cost}."
    if speedup["ci95"][1] < 1:
        return (
            "No exported file is faster than torch on this machine. The fastest is "
            f"{row['artefact']}: {takes}, {speedup_text(speedup)} the speed of torch, {cost}."
        )
    speed = _speed_against(speedup, "torch")
    return f"Ship {row['artefact']} on this machine: {speed} ({takes}), {cost}."


def busy(row: Row) -> bool:
    """Too few of the rounds in which the file was timed were undisturbed."""
    return "timing" in row and row["timing"]["busy"]


def _cost_clause(accuracy: Accuracy | None) -> str:
    if accuracy is None or accuracy["drop_pp"] is None:
        return "accuracy not measured"
    return f"top-1 drop {drop_text(accuracy)} points"


def unconfirmed(report: Report) -> list[str]:
    """Which files keep the limit though their interval does not, where no file fails."""
    gates = report["gates"]
    return gates.get("unconfirmed", []) if gates["passed"] else []


def findings(report: Report) -> tuple[Finding, ...]:
    """The verdict row by row, what a reader must not miss first."""
    limit = report["gates"]["max_drop_pp"]
    found = []
    if report["weights"]["source"] == "random":
        text = "The weights are random: speed is real, accuracy figures say nothing."
        found.append(Finding(text, "bad"))
    if limit is not None and not all(row["accuracy"] for row in report["results"]):
        text = f"The limit of {percent(limit)} points of top-1 could not be checked on every file."
        found.append(Finding(text, "bad"))
    elif unconfirmed(report):
        text = f"The drop may exceed the limit of {percent(limit)} points: not confirmed. "
        found += [Finding(text + line + ".", "bad") for line in unconfirmed(report)]
    elif limit is not None and report["gates"]["passed"]:
        text = f"All checks passed; the limit was a top-1 drop of {percent(limit)} points."
        found.append(Finding(text, "good"))
    elif limit is None:
        found.append(Finding("No limit was set for the top-1 drop."))
    if tuned := report.get("fine_tuning"):
        found.extend(_fine_tuning(tuned, ranking_images(report)))
    found.extend(speed_findings(report["results"]))
    found.extend(_predictions(report))
    for machine in report.get("machines", []):
        found.extend(speed_findings(machine["results"], machine["machine"]))
    found.extend(_ran_otherwise(report))
    found.extend(_describe(row, limit) for row in report["results"])
    return tuple(found)


def speed_findings(rows: Sequence[Row], machine: str | None = None) -> Iterator[Finding]:
    """What must be known of the speeds of rows, which may be of several alternations.

    Args:
        machine: its name, where it is not the exporting one.
    """
    for run in _alternations(rows):
        place = "" if machine is None else f"{machine}, {_run_of(run[0])}: "
        for finding in (*_disturbed(run), *_precision_that_does_not_pay(run)):
            yield Finding(place + finding.text, finding.tone)


def _alternations(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by the alternation that they are of: each has every file once."""
    runs: list[list[Row]] = []
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        name = (row["artefact"], row["settings"].get(CUDA_GRAPH))
        if name in seen or not runs:
            runs.append([])
            seen = set()
        runs[-1].append(row)
        seen.add(name)
    return runs


def _run_of(row: Row) -> str:
    """How a file was run, for those who ran it in several ways."""
    settings = row["settings"]
    said = f"batch {settings.get('batch', NOT_MEASURED)}, {settings.get('threads')} thread(s)"
    return f"{said}{device_text(row)}"


def _disturbed(run: Iterable[Row]) -> Iterator[Finding]:
    """What kept the files of one alternation from CPUs while they were timed."""
    for timing in (row["timing"] for row in run if "timing" in row):
        rounds = f"{timing['disturbed']} of {timing['rounds']} rounds of timing"
        if timing["busy"]:
            text = (
                f"This machine was busy: in {rounds}, files were kept from CPUs, most of the time "
                f"by {_cause(timing)}. No speed-up is given."
            )
            yield Finding(text, "bad")
        elif timing["disturbed"]:
            yield Finding(
                f"{rounds} were disturbed, most of the time by {_cause(timing)}, and are left out "
                "of every figure of speed."
            )
        if timing["lost"] is None:
            yield Finding(
                "This system does not tell how long files wait for CPUs: had others had them, the "
                "figures of speed would not show it."
            )
        return


def _cause(timing: Timing) -> str:
    """What kept a file from CPUs for longest."""
    by_others = min(timing["waited"] or 0, timing["others"] or 0)
    shares = {
        "other processes": by_others,
        "other virtual machines": timing["stolen"] or 0,
        "a limit of its CPUs": timing["throttled"] or 0,
    }
    return max(shares, key=lambda name: shares[name])


def _ran_otherwise(report: Report) -> list[Finding]:
    places = [("", report["results"])]
    places += [(f" on {m['machine']}", m["results"]) for m in report.get("machines", [])]
    found = [one for place, rows in places for row in rows for one in otherwise(row, place)]
    return list(dict.fromkeys(found))  # a machine's rows may differ in what does not matter here


def otherwise(row: Row, place: str = "") -> Iterator[Finding]:
    """Sentences on settings that the runtime did not take, and on INT8 that did not run as such.

    Args:
        place: where, behind a space; empty for the exporting machine.
    """
    name = f"{row_name(row)}{place}"
    for setting, value in row.get("otherwise", {}).items():
        yield Finding(f"{name}: {setting} was to be {value['asked']} and is {value['in_force']}.")
    layers: Layers = row.get("layers") or {"int8_in_file": 0, "run": {}}
    run, wanted = dict(layers["run"]), layers["int8_in_file"]
    int8 = run.pop("int8", 0)
    if int8 < LEAST_INT8 * wanted:
        others = ", ".join(f"{count(number)} in {kind}" for kind, number in sorted(run.items()))
        yield Finding(
            f"{name}: {count(int8)} of the {count(wanted)} layers that the file has in INT8 ran in "
            f"INT8 (others: {others or 'none'}). A wider file, or another runtime's INT8, may be "
            "the faster one there.",
            "bad",
        )


def ranking_images(report: Report) -> str:
    """What choices were made on, in words."""
    if report["images"].get("ranking"):
        return "the held-out calibration images"
    return "the calibration images themselves, too few to hold some out"


def _fine_tuning(tuned: Tuning, judged_on: str) -> Iterator[Finding]:
    """What became of it; the error on `judged_on` chose between the epochs and none."""
    for name, scheme in tuned["schemes"].items():
        judged = (scheme["held_out"][epoch] for epoch in (0, scheme["chosen"]))
        before, after = (percent(error and 100 * math.sqrt(error)) for error in judged)
        learned = f" with {scheme['method']} ranges" if "method" in scheme else ""
        if scheme["chosen"]:
            text = (
                f"INT8 ({name} recipe) was fine-tuned on {count(tuned['images'])} images{learned}: "
                f"the error of its outputs on {judged_on} went from {before} to {after} %. What it "
                "drops is told from the original network."
            )
        else:
            text = (
                f"Fine-tuning INT8 ({name} recipe) on {count(tuned['images'])} images did not "
                f"lessen the error of its outputs on {judged_on} ({before} %) and was not used."
            )
        yield Finding(text)
