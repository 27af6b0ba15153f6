"""What TensorRT-RTX makes of graphs: launches, bytes, products by type, and a predicted time.

    python -m benchmarks.engine_record BUNDLE_OR_ONNX... [--batch 1] [--gpu-arch sm89]
    python -m benchmarks.engine_record ours.onnx --compare theirs.onnx

Read from the layer information in the builder's own log, which needs no GPU. The time is a
roofline's, not measured. `--layers` lists every launch with the ONNX nodes that it computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cmt.targets.tensorrt.record import GPUS, Record, predict, read_record

Row = dict[str, Any]
ARCHS = click.Choice(list(GPUS))


def row_of(record: Record, arch: str) -> Row:
    """An engine's figures; bytes, multiply-adds, and microseconds that are predicted."""
    return {
        "launches": len(record.launches),
        "syncs": record.syncs,
        "copies": record.copies,
        "moved": record.moved,
        "constants": record.constants,
        "macs": record.macs,
        "products": {" ".join(key): count for key, count in record.products.most_common()},
        "predicted_us": 1e6 * predict(record, GPUS[arch]),
        "predicted_for": GPUS[arch].name,
    }


def markdown(rows: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """A table of engines, a line each."""
    gpu = rows[0][1]["predicted_for"]
    yield f"| graph | launches | syncs | copies | moved | constants | INT8 | predicted, {gpu} |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in rows:
        macs = row["macs"]
        share = macs.get("Int8", 0) / max(1, sum(macs.values()))
        yield (
            f"| {name} | {row['launches']} | {row['syncs']} | {row['copies']} "
            f"| {row['moved'] / 1e6:.1f} MB | {row['constants'] / 1e6:.1f} MB "
            f"| {share:.0%} of the products | {row['predicted_us']:.0f} us |"
        )


def layers(record: Record) -> Iterator[str]:
    """Every launch: kB moved, kind, types, name, and the ONNX nodes that it computes."""
    for launch in record.launches:
        types = [",".join(t.kind for t in side) for side in (launch.reads, launch.writes)]
        yield (
            f"{launch.moved / 1e3:9.1f} {launch.kind:15} {types[0]} -> {types[1]} {launch.name}: "
            f"{', '.join(launch.nodes)}"
        )


def _graphs(places: Sequence[Path]) -> list[Path]:
    """ONNX files: those given, and all of the bundles given."""
    bundles = [sorted((place / "model").glob("*.onnx")) for place in places if place.is_dir()]
    return [*(p for p in places if not p.is_dir()), *(path for b in bundles for path in b)]


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--gpu-arch", default="sm89", show_default=True, type=ARCHS)
@click.option("--batch", default=1, show_default=True, help="Of graphs that take any.")
@click.option("--compare", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--layers", "list_layers", is_flag=True, help="Every launch.")
@click.option("--json", "as_json", is_flag=True)
def main(
    places: tuple[Path, ...],
    gpu_arch: str,
    batch: int,
    compare: Path | None,
    list_layers: bool,
    as_json: bool,
) -> None:
    """Print what becomes of ONNX graphs; `--compare` tells bytes relative to that graph's."""
    paths = _graphs(places) + ([] if compare is None else [compare])
    if not paths:
        raise click.UsageError("there are no ONNX files: give some, or a bundle")
    records = {str(path): read_record(path, gpu_arch, batch) for path in paths}
    rows = [(name, row_of(record, gpu_arch)) for name, record in records.items()]
    if as_json:
        click.echo(json.dumps(dict(rows), indent=1))
        return
    click.echo("\n".join(markdown(rows)))
    if compare is not None:
        theirs = records[str(compare)].moved
        for name, row in rows[:-1]:
            click.echo(f"{name} moves {row['moved'] / theirs:.3f} times the bytes of {compare}")
    if list_layers:
        for record in records.values():
            click.echo("\n".join(layers(record)))


if __name__ == "__main__":
    main()
