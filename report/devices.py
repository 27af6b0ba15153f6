"""Accuracy that cmt-bench measured where the files run, beside that of the export, in words."""

from __future__ import annotations

from collections.abc import Iterator

from cmt.report.figures import count, device_text, is_simulated, percent, points, row_name, share
from cmt.report.rows import Report, Row
from cmt.report.verdict import Finding, accuracy_sentence, over_limit


def device_rows(report: Report) -> Iterator[tuple[str, Row]]:
    """Machine and row of each file on each device that has such figures, once."""
    for machine in report.get("machines", []):
        seen = set()
        for row in machine["results"]:
            key = (row["artefact"], device_text(row))
            if key not in seen and ("beside_torch" in row or "unknown_images" in row):
                seen.add(key)
                yield machine["machine"], row


def device_findings(report: Report) -> tuple[Finding, ...]:
    """A sentence or more on each of `device_rows`."""
    limit = report["gates"]["max_drop_pp"]
    return tuple(
        Finding(
            f"{row_name(row)}{device_text(row)}, answering on {machine}: "
            + " ".join(_sentences(report, row, limit)),
            "bad" if over_limit(row, limit) else "plain",
        )
        for machine, row in device_rows(report)
    )


def _sentences(report: Report, row: Row, limit: float | None) -> Iterator[str]:
    yield accuracy_sentence(row, limit)
    accuracy = row["accuracy"]
    if accuracy is not None and accuracy["drop_pp"] is not None:
        yield from _apart(report, row, accuracy["drop_pp"], accuracy["images"])
    elif beside := row.get("beside_torch"):
        same, images = share(beside["agreement"]), count(beside["images"])
        yield f"{same} of {images} images have torch's first answer."
    if unknown := row.get("unknown_images"):
        found = []
        if unknown["top1"] is not None:
            found.append(f"top-1 is {percent(unknown['top1'])} %")
        if unknown["agreement"] is not None:
            same = share(unknown["agreement"])
            found.append(f"{same} have the first answer of the FP32 file on the CPU")
        told = " and ".join(found) or "nothing is known"
        yield f"Of {count(unknown['images'])} images that torch did not answer, {told}."


def _apart(report: Report, row: Row, drop: float, images: int) -> Iterator[str]:
    """How far the drop on so many images is from what the export said of the same file."""
    for exported in report["results"]:
        told = exported["accuracy"]
        same_file = (exported["target"], exported["artefact"]) == (row["target"], row["artefact"])
        if not same_file or told is None or told["drop_pp"] is None:
            continue
        how = "simulated at the export" if is_simulated(exported) else "at the export"
        if told["images"] == images:
            apart = percent(abs(drop - told["drop_pp"]))
            where = f": {apart} points apart"
        else:
            where = f" on {count(told['images'])} images, others than these"
        yield f"The drop {how} was {points(told['drop_pp'])} points{where}."
