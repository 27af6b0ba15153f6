"""Nothing that was read reaches a terminal as it is: no forged lines, no escape sequences."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from cmt.printing import printable


def is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


HOSTILE = (
    b"x\nok      signature: good",
    b"x\r\x1b[2Jok      all",
    b"x\x9b2J",
    b"x\xc2\x9b2J",
    b"\xe2\x80\xaegpj.x",
    b"x\xe2\x80\xa8ok",
    b"x\xff\xfey",
    b"x\x7f\x08y",
    b"x\xe2\x81\xa6y\xef\xbb\xbf",
)
# Several in one name: a program that loads a model takes long, and `print_names` takes each alone.
TOGETHER = (b"".join(HOSTILE), b"".join(part for part in HOSTILE if is_utf8(part)))


def assert_visible(output: bytes, lines: int | None = None) -> None:
    text = output.decode()
    assert lines is None or len(text.splitlines()) == lines, text
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)


def names() -> list[str]:
    """Every character beside ordinary ones, and random mixtures of them."""
    rng = random.Random(0)
    points = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) != "Cn"]
    odd = [c for c in points if not chr(c).isprintable() or chr(c).isspace()]
    odd = [*rng.sample(odd, 300), *range(1, 0x100), 0x200E, 0x202E, 0x2028, 0xFEFF, 0xDC80, 0xDCFF]
    edges = [0x7F, 0x80, 0x7FF, 0x800, 0xD7FB, 0xFFFD, 0x10000, 0x1F600, 0xE0001, 0x10FFFD]
    single = [f"a{chr(c)}b" for c in (*odd, *edges) if not 0xD800 <= c < 0xDC80]
    pool = [c for c in (*odd, *edges, *rng.sample(points, 300)) if not 0xD800 <= c < 0xE000]
    return single + ["".join(map(chr, rng.choices(pool, k=12))) for _ in range(500)]


def test_names_are_shown_as_python_shows_them(runtime: Path) -> None:
    texts = [name for name in names() if "\0" not in name]
    # As the system gives names: what is no UTF-8 is a lone surrogate to Python.
    given = b"".join(os.fsencode(name) + b"\0" for name in texts)
    program = runtime / "tests" / "print_names"
    result = subprocess.run([program], input=given, capture_output=True, check=True)
    lines = result.stdout.decode().split("\n")[:-1]
    expected = [printable(os.fsdecode(os.fsencode(name))) for name in texts]
    differ = [(a, b) for a, b in zip(expected, lines, strict=True) if a != b]
    assert not differ


@pytest.mark.parametrize("name", TOGETHER, ids=["bytes", "utf-8"])
@pytest.mark.parametrize("tool", ["cmt_check", "cmt_classify", "cmt_bench"])
def test_hostile_names_on_the_command_line_stay_one_line(
    any_runtime: Path, stored: Path, tmp_path: Path, tool: str, name: bytes
) -> None:
    odd = os.fsencode(tmp_path) + b"/" + name
    stored.rename(os.fsdecode(odd))
    photo = odd + b".jpg"
    shutil.copy(odd + b"/golden/photo.jpg", photo)
    images = [photo] if tool == "cmt_classify" else []
    quick = ["--seconds", "0.05"] if tool == "cmt_bench" else []
    good = subprocess.run(
        [any_runtime / tool, odd, *images, *quick], capture_output=True, check=False
    )
    assert good.returncode in (0, 1), good.stderr  # 1 where INT8 sums are cut off
    assert_visible(good.stdout)
    assert_visible(good.stderr)
    if tool != "cmt_check":
        json_too = [any_runtime / tool, odd, *images, *quick, "--json"]
        result = subprocess.run(json_too, capture_output=True, check=True)
        assert result.stdout.isascii()
        json.loads(result.stdout)
    for arguments in ([odd + b"none", *images], [odd, b"--" + name], [odd, b"--threads", name]):
        refused = subprocess.run([any_runtime / tool, *arguments], capture_output=True, check=False)
        assert refused.returncode == 2
        assert_visible(refused.stderr, lines=1)


def test_a_program_with_a_hostile_name_says_it_visibly(runtime: Path, tmp_path: Path) -> None:
    odd = tmp_path / "cmt\x1b[2J\nok"
    odd.symlink_to(runtime / "cmt_check")
    result = subprocess.run([odd], capture_output=True, check=False)
    assert result.returncode == 2
    assert_visible(result.stderr, lines=1)
