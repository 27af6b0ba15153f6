"""The gate within a run: which units of a file go back to float to keep `--max-drop`.

Choices are made on held-out calibration images, never on validation ones, which only confirm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.candidates import Candidate
from export.narrowing import NONE, SUFFIX, Narrowing, Row, narrowed_graph, short_hash
from export.targets import built_settings
from measure.latency import ROUNDS, measure_alternately
from measure.runners import PRECISION
from measure.statistics import compare, paired_ratio
from quantize.gate import Lever, Search, Units, by_gain, pareto
from quantize.sensitivity import Array, answers_changed, relative_error

if TYPE_CHECKING:
    from export.pipeline import Run

ARITHMETIC = "float arithmetic"
"""The unit of BF16 where a file says float; back to float32, it costs every operator of it."""
TIMED_UNITS = 8
"""The units with the largest errors, whose time in float is taken before the gate chooses."""
_TIMING_SECONDS = 1.0


class Fallback:
    """The gate of a run.

    Attributes:
        rows: what was tried for each file that exceeded `--max-drop`, the report's `fallbacks`.
    """

    def __init__(self, run: Run, narrowing: Narrowing) -> None:
        self._run, self._narrowing = run, narrowing
        self.rows: list[Row] = []

    def units(self, candidate: Candidate, reference: Path) -> Units:
        """The units that the candidate needs in float to keep `--max-drop`, or does best with."""
        run, options = self._run, self._run.options
        if run.inputs.not_labelled is not None or not options.gate_minutes:
            return NONE
        start = self._drop(candidate, NONE)
        if start <= options.max_drop:
            return NONE
        if candidate.precision == "fp32":
            return NONE  # nothing of it is narrow
        if "ranking" not in run.images:
            run.inputs.warnings.append(
                f"{candidate.name} exceeds --max-drop, and there are no images to choose on what "
                "goes back to float: give --calib-data"
            )
            return NONE
        expected = run.outputs("torch", "torch", reference, "reference", on="ranking")[0]

        def changed(units: Units) -> float:
            return answers_changed(
                run.candidate_outputs(candidate, units, on="ranking")[0], expected
            )

        levers, cost = self._levers(candidate, expected)
        if not levers:
            return NONE
        search = Search(
            order=by_gain(levers),
            # All units of a graph in float would be another precision's file.
            most=max(len(levers) - 1, 1),
            changed=changed,
            drop=lambda units: self._drop(candidate, units),
            limit=options.max_drop,
            seconds=60 * options.gate_minutes,
            tried={NONE: changed(NONE)},
        )
        met = search.run()
        units = search.best(start) if met is None else met
        self.rows.append(
            {
                "target": candidate.target.name,
                "precision": candidate.precision,
                "met": met is not None,
                "out_of_time": search.out_of_time,
                "ranking_images": len(expected),
                "cost": cost,
                "layers": sum(lever.layers for lever in levers.values()),
                "points": self._points(candidate, levers, search, start, units),
            }
        )
        return units

    def _drop(self, candidate: Candidate, units: Units) -> float:
        """Points of top-1 on the validation images; infinite where answers are no numbers."""
        run = self._run
        logits = run.candidate_outputs(candidate, units)[0]
        if not np.isfinite(logits).all():
            return float("inf")
        labels = run.validation.labels
        assert labels is not None
        return compare(logits, run.reference[0], labels).drop_pp

    def _levers(self, candidate: Candidate, expected: Array) -> tuple[dict[str, Lever], str]:
        """The candidate's units, and what their cost is."""
        name, rows = narrowed_graph(candidate), []
        if name is not None:
            rows = self._narrowing.rows(name)
        found = {
            row["unit"]: (
                np.inf if row["sqnr_db"] is None else 10 ** (-row["sqnr_db"] / 10),
                row["layers"],
                row["macs"],
            )
            for row in rows
        }
        if self._in_bf16(candidate):
            half = Candidate(candidate.target, "fp16")
            logits = self._run.candidate_outputs(half, on="ranking")[0]
            found[ARITHMETIC] = (relative_error(logits, expected), 0, 0)
        total = sum(macs for _, _, macs in found.values()) or 1
        not_timed = candidate.target.not_timed
        if not_timed is not None:
            cost = f"share of multiply-adds: {not_timed()}"
            return {u: Lever(e, macs / total, n) for u, (e, n, macs) in found.items()}, cost
        worst = sorted(found, key=lambda unit: -found[unit][0])[:TIMED_UNITS]
        times = self._slowdowns(candidate, [frozenset({unit}) for unit in worst])
        lost = {unit: time - 1 for unit, time in zip(worst, times, strict=True)}
        cost = "measured time"
        if rest := len(found) - len(worst):
            cost += f"; {rest} units of small error by multiply-adds"
        return {
            u: Lever(e, lost.get(u, macs / total), n) for u, (e, n, macs) in found.items()
        }, cost

    def _in_bf16(self, candidate: Candidate) -> bool:
        if candidate.target.runs_graph:
            return False
        return built_settings(self._run.build(candidate)).get(PRECISION) == "bf16"

    def _slowdowns(self, candidate: Candidate, choices: Sequence[Units]) -> list[float]:
        """How many times as long the file takes with these units in float, in one alternation."""
        run = self._run
        places = [run.evaluated_file(candidate, units) for units in [NONE, *choices]]
        files = {str(i): (candidate.target.runtime, path) for i, (path, _) in enumerate(places)}
        settings = {str(i): built_settings(path.parent) for i, (path, _) in enumerate(places)}

        def make(folder: Path) -> None:
            title = f"timing {len(choices)} choices for {candidate.name}"
            with run.progress.task(title, ROUNDS) as advance:
                timings = measure_alternately(
                    files,
                    run.fed.batch(run.options.batch),
                    run.options.thread_count,
                    _TIMING_SECONDS,
                    advance,
                    settings,
                )
            medians = [[float(np.median(ms)) for ms in t.rounds] for t in timings.values()]
            ratios = [paired_ratio(medians[0], other)["median"] for other in medians[1:]]
            (folder / "slowdowns.json").write_text(json.dumps(ratios))

        after = ["images/validation", *dict.fromkeys(stage for _, stage in places)]
        inputs = {"threads": run.options.thread_count, "seconds": _TIMING_SECONDS}
        stage = f"{candidate.name}.slowdowns{SUFFIX}{short_hash([sorted(c) for c in choices])}"
        folder = run.stages.run(stage, inputs, make, after)
        return json.loads((folder / "slowdowns.json").read_text())

    def _points(
        self,
        candidate: Candidate,
        levers: dict[str, Lever],
        search: Search,
        start: float,
        chosen: Units,
    ) -> list[Row]:
        """A row for each choice that was tried, the first one with nothing in float."""
        tried = list(search.tried)
        timed = candidate.target.not_timed is None
        others = self._slowdowns(candidate, tried[1:]) if timed and tried[1:] else []
        slowdowns = [1.0, *others] if timed else [None] * len(tried)
        drops = {NONE: start, **search.confirmed}
        rows: list[Row] = []
        for units, slowdown in zip(tried, slowdowns, strict=True):
            path, _ = self._run.evaluated_file(candidate, units)
            drop = drops.get(units)
            rows.append(
                {
                    "float": sorted(units),
                    "float_layers": sum(levers[unit].layers for unit in units),
                    "changed": search.tried[units],
                    "drop_pp": drop if drop is None or np.isfinite(drop) else None,
                    "slowdown": slowdown,
                    "bytes": sum(
                        file.stat().st_size
                        for file in path.parent.iterdir()
                        if file.stem == path.stem
                    ),
                    "chosen": units == chosen,
                }
            )
        best = pareto([(r["changed"], r["slowdown"] if timed else r["bytes"]) for r in rows])
        return [{**row, "pareto": on} for row, on in zip(rows, best, strict=True)]
