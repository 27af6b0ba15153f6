"""Bundles that somebody changed and sealed again, opened by Python and by C++.

    python tests/endurance/resealed_bundles.py PROGRAM [--count 10000] [--seed 0] [--out FILE.json]

PROGRAM is `read_manifests` of a build of runtime/cpp. Each bundle is a stored one with its manifest
or its files changed, after which nearly all hashes and the seal are made anew, so that it looks
whole. Both readers must take it or refuse it in one line, both alike, and write nothing into it.
Prints every bundle that was answered otherwise and keeps it in the work folder; exit status 1 if
there is one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

from both_readers import Answer, CppReader, in_python, limit_memory
from manifest_mutations import PATHS, as_text, change_values

from cmt.bundle.manifest import MANIFEST, SEAL, file_entries, seal_of
from cmt.bundle.reader import open_bundle
from cmt.bundle.writer import describe_file

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "reference" / "bundles" / "schema_1.zip"
NAMES = (
    *PATHS,
    "golden/x y",
    "\u6f22/\u5b57",
    "a\nb",
    "report.md.partial",
    ".replacement/x",
    "nul",
)
Manifest = dict[str, Any]
Change = Callable[[Path, Manifest, random.Random], object]


def _some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def _new_content(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    content = path.read_bytes()
    contents = (b"", content[:-1], content + b"\0", rng.randbytes(100), b"{}", content[::-1])
    path.unlink()  # a hard link to the original
    path.write_bytes(rng.choice(contents))


def _no_file(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    kind = rng.randrange(4)
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        targets = ("/etc/hostname", "report.md", "..", path.name, "golden/photo.jpg", "/dev/zero")
        path.symlink_to(rng.choice(targets))


def _renamed(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    """A file of another name, which the manifest follows three times in four."""
    path, name = _some_file(folder, rng), rng.choice(NAMES)
    old, place = path.relative_to(folder).as_posix(), folder / name.replace("\0", "0")
    with suppress(OSError, ValueError):  # a name that is none, or of a folder
        if place.resolve().is_relative_to(folder.resolve()):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
    for entry in file_entries(manifest):
        if entry["path"] == old and rng.random() < 0.75:
            entry["path"] = name


def _swapped(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    """Two entries that have each other's hashes, files or names."""
    entries = list(file_entries(manifest))
    one, other = rng.choice(entries), rng.choice(entries)
    for key in rng.choice((("sha256",), ("path",), ("path", "bytes", "sha256"), ("bytes",))):
        one[key], other[key] = other[key], one[key]


def _more_files(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    """A file that nobody expects, such as a replacement that seems half done."""
    kind = rng.randrange(4)
    name = rng.choice((MANIFEST, SEAL, "report.md", "golden/photo.jpg", "x"))
    folders = (".replacement", ".replacement.partial", "golden", "__pycache__")
    place = folder / folders[kind] / name
    place.parent.mkdir(parents=True, exist_ok=True)
    content = rng.choice((b"{}", b"", (folder / MANIFEST).read_bytes()))
    place.write_bytes(content) if not place.exists() else None
    if kind == 2:
        entry = describe_file(folder, place)
        manifest["environment"]["more"] = rng.choice(([entry], [entry] * 300, {"x": entry}))


def _other_settings(folder: Path, manifest: Manifest, rng: random.Random) -> None:
    values = (1, 0, 4096, 4097, 2**31, "1", "f32", "bf16", "LATENCY", "", None, True, [], 1.0)
    names = ("NUM_STREAMS", "INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "CACHE_DIR")
    settings = rng.choice(manifest["artefacts"]).setdefault("settings", {})
    settings[rng.choice((*names, "PERFORMANCE_HINT", "num_streams"))] = rng.choice(values)


CHANGES: tuple[Change, ...] = (
    *[lambda _, manifest, rng: change_values(manifest, rng)] * 5,
    *(_new_content, _no_file, _renamed, _renamed, _swapped, _more_files, _other_settings),
)


def make(original: Path, folder: Path, rng: random.Random) -> None:
    """A changed copy of a bundle, sealed again; its unchanged files are links to the originals."""
    shutil.copytree(original, folder, copy_function=os.link)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for number in range(rng.choice((1, 1, 2, 3))):
        # What changes values leaves a manifest that the others may not know, so it comes last.
        rng.choice(CHANGES if number == 0 else CHANGES[:5])(folder, manifest, rng)
    if rng.random() < 0.95:
        _hash_again(folder, manifest)
    content = as_text(manifest, rng)
    if rng.random() < 0.97:
        _write(folder / MANIFEST, content)
        _write(folder / SEAL, seal_of(content) if rng.random() < 0.97 else b"0" * 64)


def _hash_again(folder: Path, manifest: Any) -> None:
    for entry in file_entries(manifest):
        with suppress(OSError, ValueError, TypeError):  # a path of another kind, or no file
            entry |= {**describe_file(folder, folder / entry["path"]), "path": entry["path"]}


def _write(path: Path, content: bytes) -> None:
    """Replace what is in the place of a file, unless that is a folder or a pipe."""
    if path.is_file() or not os.path.lexists(path):
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def state_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """What every write changes: which files there are, their inodes, sizes and times."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        now = path.lstat()
        found[str(path)] = (now.st_ino, now.st_mode, now.st_size, now.st_mtime_ns, now.st_nlink)
    return found


def findings(python: Answer, cpp: Answer, written: bool) -> list[str]:
    """What is wrong with the answers to one bundle, by the names of what is counted."""
    found = [answer.what for answer in (python, cpp) if answer.what in ("crash", "hang")]
    lines = [a for a in (python, cpp) if a.what == "refused" and len(a.said.splitlines()) != 1]
    found += ["not one line"] * len(lines) + ["written"] * written
    return found if python.what == cpp.what else [*found, "disagreement"]


def _keep(folder: Path, place: Path) -> None:
    """Move a bundle to where somebody can look at it."""
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)


def main(options: argparse.Namespace) -> int:
    """Open so many bundles; the status is 1 if one of them was answered wrongly."""
    in_cpp, rng, counts = CppReader(options.program), random.Random(options.seed), Counter[str]()
    limit_memory()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="cmt-resealed-", dir=memory) as work:
        original, folder = Path(work) / "original", Path(work) / "bundle"
        with zipfile.ZipFile(STORED) as archive:
            archive.extractall(original)
        for number in range(options.count):
            make(original, folder, rng)
            before = state_of(folder)
            python, cpp = in_python(lambda: open_bundle(folder)), in_cpp(folder)
            wrong = findings(python, cpp, state_of(folder) != before)
            counts.update([python.what, *wrong])
            if wrong:
                print(f"{number}: {', '.join(wrong)}: Python {python}, C++ {cpp}", flush=True)
                _keep(folder, options.work / str(number))
            shutil.rmtree(folder, ignore_errors=True)
    in_cpp.close()
    print(f"{options.count:,} bundles: {dict(counts)}")
    if options.out:
        options.out.write_text(json.dumps(row(options.count, counts), indent=1) + "\n")
    return int(bool(counts.keys() - {"accepted", "refused"}))


def row(count: int, counts: Counter[str]) -> dict[str, Any]:
    """The row of docs/notebook/robustness.md; a disagreement is a wrong success of one of two."""
    return {
        "suite": "changed and sealed again",
        "what": "bundles with other values, files and hashes, opened by Python and C++ alike: "
        f"{counts['accepted']:,} accepted, {counts['refused']:,} refused",
        "inputs": count,
        "crashes": counts["crash"],
        "hangs": counts["hang"],
        "wrong_successes": counts["disagreement"] + counts["written"] + counts["not one line"],
        "date": datetime.date.today().isoformat(),
        "command": f"python tests/endurance/resealed_bundles.py PROGRAM --count {count}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "resealed")
    parser.add_argument("--out", type=Path, help="Write the counts here as JSON.")
    sys.exit(main(parser.parse_args()))
