"""A folder with all that `benchmarks/gpu.py` needs on a machine with a GPU and without a network.

    python -m benchmarks.gpu_folder OUT BUNDLE... --photos PHOTOS
    python -m benchmarks.gpu_folder OUT BUNDLE... --library tensorrt-cu13 --python 3.12

OUT gets parts of at most 60 MB, their hashes, and `unpack.py`, which needs Python alone:

    python3 unpack.py FOLDER && sh FOLDER/run.sh

In the parts, packed with xz: this package and the libraries of the locked versions as they are when
installed (TensorRT-RTX's 234 MB become a third), the bundles, the photos, and what the builder's
record predicts of every graph. Torch is not among them; where the machine has it, it is measured.
"""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import click

from benchmarks.gpu import points_of
from cmt.bundle.reader import open_bundle
from cmt.calib_data.sources import FolderImages, choose
from cmt.errors import InputError
from cmt.files import sha256_file
from cmt.targets.tensorrt.record import GPUS, Rates, predict, read_record

ROOT = Path(__file__).parents[1]
PART = 60_000_000
"""Bytes of a part, at most."""
RECORDED = "sm89"
"""Whose record is taken, whatever the GPU: TensorRT-RTX does not build for all."""
RATES = {
    **GPUS,
    "sm90": Rates(
        "H200",
        "NVIDIA, H200 Tensor Core GPU data sheet, its figures with sparsity halved",
        4800e9,
        {"Half": 494.7e12, "Int8": 989.5e12, "FP8": 989.5e12, "Float": 33.5e12},
    ),
}
"""By compute capability, a GPU that times are predicted for."""
RUN = """\
#!/bin/sh
cd "$(dirname "$0")" || exit
PYTHONPATH="$PWD/site" exec "${PYTHON:-python3}" -m benchmarks.gpu bundles/* --photos photos \\
    --predictions predictions.json --out "${OUT:-.}/gpu.json" "$@"
"""
UNPACK = '''\
"""Checks the parts beside this file and unpacks them: python3 unpack.py FOLDER"""

import hashlib
import lzma
import pathlib
import sys
import tarfile


class Joined:
    def __init__(self, paths):
        self.files, self.last = iter(paths), None

    def read(self, size=-1):
        while True:
            content = self.last.read(size) if self.last else b""
            if content:
                return content
            path = next(self.files, None)
            if path is None:
                return b""
            self.last = path.open("rb")


here = pathlib.Path(__file__).parent
parts = []
for line in (here / "parts.sha256").read_text().splitlines():
    digest, name = line.split()
    parts.append(here / name)
    if not parts[-1].is_file():
        sys.exit(f"{name} is missing: copy all parts")
    if hashlib.sha256(parts[-1].read_bytes()).hexdigest() != digest:
        sys.exit(f"{name} is damaged: copy it again")
with tarfile.open(fileobj=lzma.LZMAFile(Joined(parts)), mode="r|") as archive:
    archive.extractall(sys.argv[1])
'''


class Parts:
    """A file to write to that goes on in a new part where one is full."""

    def __init__(self, folder: Path, most: int = PART) -> None:
        self._folder, self._most, self._left = folder, most, 0
        self.paths: list[Path] = []

    def write(self, content: bytes) -> int:
        """All of it, over as many parts as it takes."""
        view = memoryview(content)
        while view:
            if self._left == 0:
                self.paths.append(self._folder / f"part-{len(self.paths):02}.xz")
                self.paths[-1].write_bytes(b"")
                self._left = self._most
            with self.paths[-1].open("ab") as file:
                taken = file.write(view[: self._left])
            self._left -= taken
            view = view[taken:]
        return len(content)


def pack(folder: Path, out: Path, most: int = PART) -> list[Path]:
    """A folder's content as parts in `out`, with their hashes and what unpacks them."""
    out.mkdir(parents=True, exist_ok=True)
    parts = Parts(out, most)
    with (
        lzma.LZMAFile(cast("BinaryIO", parts), "w") as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        archive.add(folder, arcname=".")
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in parts.paths]
    (out / "parts.sha256").write_text("".join(lines))
    (out / "unpack.py").write_text(UNPACK)
    return parts.paths


def predicted(bundles: Sequence[Path]) -> dict[str, Any]:
    """For `gpu.py`: by graph, batch and GPU, what the record says; nothing is measured."""
    found = {}
    for point in (point for place in bundles for point in points_of(open_bundle(place))):
        for graph in point.bundle.manifest["artefacts"]:
            if graph["target"] != "onnx":
                continue
            path = point.bundle.file(graph)
            record = read_record(path, RECORDED, point.batch)
            for arch, rates in RATES.items():
                found[f"{graph['sha256']} {point.batch} {arch}"] = {
                    "gpu": rates.name,
                    "ms": 1e3 * predict(record, rates),
                    "launches": len(record.launches),
                    "moved": record.moved,
                    "record": RECORDED,
                }
    return found


def install(site: Path, library: str, python: str | None) -> None:
    """This package, the benchmarks and a TensorRT, of the locked versions, into a folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site)]
    locked = ["--constraint", str(ROOT / "constraints.txt")]
    other = [] if python is None else ["--python-version", python, "--only-binary=:all:"]
    subprocess.run([*command, "--no-deps", str(ROOT)], check=True)
    subprocess.run([*command, *locked, *other, *_needs(), library, "cuda-bindings"], check=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "benchmarks", site / "benchmarks", ignore=ignored)


def _needs() -> list[str]:
    """What the base install needs."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"]


def copy_photos(source: Path, out: Path, count: int, seed: int = 0) -> None:
    """As many of a folder's photos, by the export's own choice, in their class folders."""
    photos = FolderImages(source)
    for place in choose(photos, count, seed):
        path = out / Path(photos.key(int(place)))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / photos.key(int(place)), path)


def copy_bundles(bundles: Sequence[Path], out: Path) -> None:
    """Under their own names; raises InputError where two have one name, or one is none."""
    for place in bundles:
        open_bundle(place)
        if (out / place.name).exists():
            raise InputError(f"two bundles are called {place.name}: rename one")
        shutil.copytree(place, out / place.name)


FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.argument("out", type=FOLDER)
@click.argument("bundles", nargs=-1, required=True, type=EXISTING)
@click.option("--photos", required=True, type=EXISTING, help="class/name.jpg.")
@click.option("--count", default=1000, help="How many of them.")
@click.option("--library", default="tensorrt-rtx", help="tensorrt-cu13 and the like need its GPU.")
@click.option("--python", help="The other machine's, such as 3.12.  [default: as here]")
def main(
    out: Path, bundles: tuple[Path, ...], photos: Path, count: int, library: str, python: str | None
) -> None:
    """Pack what a machine without a network needs to measure engines."""
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy_bundles(bundles, folder / "bundles")
            copy_photos(photos, folder / "photos", count)
            (folder / "predictions.json").write_text(json.dumps(predicted(bundles)))
            (folder / "run.sh").write_text(RUN)
            install(folder / "site", library, python)
            parts = pack(folder, out)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    total = sum(path.stat().st_size for path in parts)
    click.echo(f"{len(parts)} parts, {total / 1e6:.0f} MB, in {out}: python3 unpack.py FOLDER")


if __name__ == "__main__":
    main()
