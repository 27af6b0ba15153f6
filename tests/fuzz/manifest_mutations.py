"""Manifests that are nearly right, as bytes: fields, then the text, changed where readers decide.

Every function takes its own random generator, so that a seed repeats a run.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from json_mutations import NASTY, change

PATHS = (
    *(
        "../x",
        "a/../golden/photo.jpg",
        "/etc/hostname",
        "golden//photo.jpg",
        "./report.md",
        "golden",
    ),
    *("golden/", "C:/x", "a\\b", ".replacement/report.md", "manifest.json", "manifest.json.sha256"),
    *(
        "GOLDEN/PHOTO.JPG",
        "golden/photo.jpg\0",
        "a" * 300,
        "golden/" * 200 + "x",
        "e\u0301",
        "\u00e9",
    ),
)
GOOD = (1, 2, 8, 0.25, 1.5, "x", "\u6f22\u5b57", "f32", "1.2", "onnxruntime", "fp16", "int8")
TEXTS = ("\u202e", "\x1b[2J", "\ud800", "\U0001f600", "\u2028", "a\nb", "x" * 1001, "pillow-box")
NUMBERS = (-1, 4097, 16385, 0.51, 17, 1e-46, 1e38, 2**32, 2**53 + 1, 2**64 - 1, -0.0, 5e-324)
STRANGE: list[Any] = [*NASTY, *PATHS, *TEXTS, *NUMBERS, *GOOD * 6]
_STRINGS = re.compile(r'"[^"\\\n]{1,80}"')
_NUMBERS = re.compile(r"(?<=[ \[])-?\d+(?:\.\d+)?(?=[,\]}\n])")
_WRITTEN = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "01", "1.", ".5", "+1", "0x1"),
    *(
        "-0",
        "1E0",
        "1.0",
        "1e0",
        "0.30000000000000000000004",
        "1" * 21,
        "1" * 400,
        "1_000",
        "\uff11",
    ),
)


def mutate(manifest: Any, rng: random.Random) -> bytes:
    """The text of a manifest with one to three things changed; of the text itself one in four.

    Args:
        manifest: any JSON value; an object or a list is changed in place.
    """
    change_values(manifest, rng)
    return as_text(manifest, rng)


def change_values(manifest: Any, rng: random.Random) -> None:
    """Change one to three things in a manifest, in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if isinstance(manifest, dict | list):
            change(manifest, rng, STRANGE)


def as_text(manifest: Any, rng: random.Random) -> bytes:
    """A manifest written in one of several ways, one in four with its text changed."""
    text = json.dumps(manifest, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.25:
        text = _mutate_text(text, rng)
    content = text.encode("utf-8", "surrogatepass")
    return _mutate_bytes(content, rng) if rng.random() < 0.1 else content


def _mutate_text(text: str, rng: random.Random) -> str:
    """What no JSON value can say: names twice, numbers and escapes as nobody writes them."""
    what = rng.randrange(7)
    strings, numbers = list(_STRINGS.finditer(text)), list(_NUMBERS.finditer(text))
    if what < 2 and strings:
        found = rng.choice(strings)
        escaped = f"\\u{ord(found[0][1]):04x}" if what else rng.choice(("\\ud800", "\\x41", "\\/"))
        return f"{text[: found.start() + 1]}{escaped}{text[found.start() + 2 :]}"
    if what < 4 and numbers:
        found = rng.choice(numbers)
        return text[: found.start()] + rng.choice(_WRITTEN) + text[found.end() :]
    if what == 4 and (members := list(re.finditer(r'"[^"\\\n]+": [^\[{,}\]]+, ?', text))):
        found = rng.choice(members)
        return text[: found.start()] + found[0] + text[found.start() :]
    if what == 5:
        return (
            rng.choice(("\ufeff", " \n\t", "", "//x\n", "\v"))
            + text
            + rng.choice(("", "\n\n", "{}", "\0", ",", "#", "\u00a0"))
        )
    depth = rng.choice((1, 60, 61, 62, 63, 64, 1000))
    nested = f'"environment": {{"x": {"[" * depth}{"]" * depth},'
    return text.replace('"environment": {', nested, 1)


def _mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    what = rng.randrange(4)
    if what == 0:
        return content[:place]
    if what == 1:
        return content[:place] + rng.randbytes(rng.randint(1, 4)) + content[place:]
    if what == 2:
        return (
            content[:place]
            + bytes([rng.choice(b'\xff\xc0\x80\0"{}[],:\\e.-')])
            + content[place + 1 :]
        )
    return content.decode("utf-8", "replace").encode(
        rng.choice(("utf-16", "utf-32", "latin-1")), "replace"
    )
