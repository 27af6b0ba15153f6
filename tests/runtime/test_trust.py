"""Engines are native code: none is loaded but from a bundle that somebody trusted vouches for.

TensorRT and the GPU are stand-ins, which write down what they are asked to do.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cmt import strict_json
from cmt.bundle.reader import open_bundle
from cmt.bundle.signature import SIGNED, check, sign
from cmt.bundle.writer import describe_file, write_manifest
from cmt.errors import InputError

Manifest = dict[str, Any]
Change = Callable[[Manifest], object]
ENGINE = "tensorrt/cmt_tiny.fp16.engine"


def nothing(_: Manifest) -> None:
    pass


def with_engine(bundle: Path, plan: str = "ENGINE 1 64 64 2\n", **fields: Any) -> None:
    """Put an engine and its golden answers into a bundle, and nothing else that runs."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / ENGINE).parent.mkdir(exist_ok=True)
    (bundle / ENGINE).write_text(plan)
    np.save(bundle / "golden" / "engine.npy", np.tile(np.arange(2, dtype=np.float32), (8, 1)))
    golden = [describe_file(bundle, bundle / "golden" / "engine.npy")]
    entry = {
        **{"target": "tensorrt", "precision": "fp16", **describe_file(bundle, bundle / ENGINE)},
        **{"built_with": {"tensorrt": "10.3.0"}, "built_for": ["sm87"], "settings": {}},
        "golden": {"outputs": golden, "produced_by": "tensorrt", "max_rel": 0.02},
        **fields,
    }
    write_manifest(bundle, {**manifest, "artefacts": [entry]})


def make_key(path: Path) -> Ed25519PrivateKey:
    """A key pair; the public part goes to `path`."""
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


def sign_bundle(bundle: Path, key: Ed25519PrivateKey) -> None:
    sign(bundle, json.loads((bundle / "manifest.json").read_text()), key)


def rewrite(bundle: Path, change: Change) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    write_manifest(bundle, manifest)


@pytest.fixture
def run(
    tensorrt_runtime: Path, tmp_path: Path
) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]:
    """`run(tool, *arguments)`: its result, and what TensorRT was asked to do."""

    def call(
        tool: str, *arguments: str | Path, **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        result = subprocess.run(
            [tensorrt_runtime / tool, *arguments],
            env={**os.environ, "STUB_LOG": str(log), **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return result, log.read_text().splitlines() if log.exists() else []

    return call


Run = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.mark.parametrize("tool", ["cmt_check", "cmt_classify", "cmt_bench"])
def test_an_engine_of_an_unsigned_bundle_is_never_loaded(run: Run, stored: Path, tool: str) -> None:
    with_engine(stored, compatible=["version"])
    photo = [stored / "golden" / "photo.jpg"] if tool == "cmt_classify" else []
    quick = ["--seconds", "0.05"] if tool == "cmt_bench" else []
    result, asked = run(tool, stored, *photo, *quick)
    assert result.returncode == 2
    assert "an engine is native code and nobody vouches for this one" in (
        result.stdout + result.stderr
    )
    assert asked == []
    result, asked = run(tool, stored, *photo, *quick, "--trust-unsigned")
    assert result.returncode == 0, result.stderr
    assert asked == ["host code allowed", "deserialised"]


def test_an_engine_of_a_signed_bundle_runs_with_the_key_alone(
    run: Run, stored: Path, tmp_path: Path
) -> None:
    with_engine(stored, dla={"core": 1, "layers": 2, "on_gpu": []})
    sign_bundle(stored, make_key(tmp_path / "key.pem"))
    result, asked = run("cmt_check", stored)
    assert (result.returncode, asked) == (2, [])
    result, asked = run("cmt_check", stored, "--trust", tmp_path / "key.pem")
    assert result.returncode == 0, result.stdout + result.stderr
    assert asked == ["host code forbidden", "core 1", "deserialised"]
    assert "ok      signature" in result.stdout
    assert f"ok      {ENGINE}" in result.stdout
    result, asked = run("cmt_check", stored, "--trust", tmp_path / "key.pem", STUB_GPUS="0")
    assert (result.returncode, asked) == (2, [])
    assert "no CUDA device" in result.stdout


def resign_with_another_key(bundle: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, make_key(tmp_path / "other.pem"))


def link_signature(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "manifest.json.sig", tmp_path / "sig")
    (bundle / "manifest.json.sig").symlink_to(tmp_path / "sig")


def put_signature(content: bytes) -> Callable[[Path, Path], object]:
    return lambda bundle, _: (bundle / "manifest.json.sig").write_bytes(content)


UNTRUSTED: dict[str, Callable[[Path, Path], object]] = {
    "another key": resign_with_another_key,
    "no signature": lambda b, _: (b / "manifest.json.sig").unlink(),
    "a link": link_signature,
    "empty": put_signature(b""),
    "blanks": put_signature(b" \n" * 40),
    "no base64": put_signature(b"!" * 88),
    "zeros": put_signature(b"A" * 86 + b"==\n"),
    "too short": put_signature(b"A" * 84 + b"\n"),
    "endless": lambda b, _: (
        (b / "manifest.json.sig").unlink(),
        (b / "manifest.json.sig").symlink_to("/dev/zero"),
    ),
    "another label": lambda b, _: rewrite(b, lambda m: m["labels"].reverse()),
    "host code": lambda b, _: rewrite(
        b, lambda m: m["artefacts"][0].update(compatible=["version"])
    ),
    "another engine": lambda b, _: with_engine(b, "ENGINE 1 64 64 2 other\n"),
    "a file more": lambda b, _: rewrite(b, lambda m: m["environment"].update(x=1)),
    "a number as another": lambda b, _: rewrite(b, lambda m: m["input"].update(range=[0, 1.0])),
}


@pytest.mark.parametrize("kind", UNTRUSTED)
def test_a_bundle_that_the_key_does_not_vouch_for_is_refused_whatever_runs(
    run: Run, runtime: Path, stored: Path, tmp_path: Path, kind: str
) -> None:
    with_engine(stored)
    sign_bundle(stored, make_key(tmp_path / "key.pem"))
    UNTRUSTED[kind](stored, tmp_path)
    arguments = (stored, "--trust", tmp_path / "key.pem", "--trust-unsigned")
    result, asked = run("cmt_check", *arguments)
    assert (result.returncode, asked) == (2, [])
    assert "is not signed" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    without = subprocess.run([runtime / "cmt_check", *arguments], capture_output=True, check=False)
    assert without.returncode == 2


def test_a_report_that_was_measured_elsewhere_keeps_the_signature(
    run: Run, stored: Path, tmp_path: Path
) -> None:
    with_engine(stored)
    sign_bundle(stored, make_key(tmp_path / "key.pem"))
    (stored / "report.md").write_text("other")
    entry = describe_file(stored, stored / "report.md")
    rewrite(stored, lambda manifest: manifest["reports"].__setitem__(1, entry))
    result, _ = run("cmt_check", stored, "--trust", tmp_path / "key.pem")
    assert result.returncode == 0, result.stderr


Store = Callable[[Path, Ed25519PrivateKey], object]


def signs(change: Callable[[bytes], bytes]) -> Store:
    """The key signs other bytes than an export stores."""

    def store(bundle: Path, key: Ed25519PrivateKey) -> None:
        content = change((bundle / SIGNED).read_bytes())
        (bundle / SIGNED).write_bytes(content)
        (bundle / "manifest.json.sig").write_bytes(base64.b64encode(key.sign(content)))

    return store


def instead(make: Callable[[Path], object]) -> Store:
    def store(bundle: Path, _: Ed25519PrivateKey) -> None:
        (bundle / SIGNED).unlink()
        make(bundle / SIGNED)

    return store


def link_signed(bundle: Path) -> None:
    (bundle / SIGNED).rename(bundle.parent / SIGNED)
    (bundle / SIGNED).symlink_to(bundle.parent / SIGNED)


def as_json(change: Callable[[Manifest], object]) -> Store:
    def edit(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return signs(edit)


# What lies in a bundle as that which was signed, and whether the bundle is trusted.
STORED: dict[str, tuple[bool, Store]] = {
    "as exported": (True, lambda b, _: None),
    "none, as early bundles": (True, instead(lambda p: None)),
    "a link to the same": (True, lambda b, _: link_signed(b)),
    "written otherwise": (True, signs(lambda c: json.dumps(json.loads(c), indent=3).encode())),
    "blanks": (True, signs(lambda c: b"\n " + c + b"\n")),
    "other reports": (True, as_json(lambda m: m.update(reports=["x"]))),
    "written otherwise, not signed": (
        False,
        lambda b, _: (b / SIGNED).write_bytes((b / SIGNED).read_bytes() + b"\n"),
    ),
    "another label": (False, as_json(lambda m: m["labels"].reverse())),
    "a name more": (False, as_json(lambda m: m.update(x=1))),
    "a name less": (False, as_json(lambda m: m.pop("environment"))),
    "a whole number": (False, as_json(lambda m: m["input"].update(range=[0, 1.0]))),
    "a list": (False, signs(lambda c: b"[" + c + b"]")),
    "a text": (False, signs(lambda c: b'"x"')),
    "null": (False, signs(lambda c: b"null")),
    "a name twice": (False, signs(lambda c: c.replace(b"{", b'{"schema":1,', 1))),
    "a byte order mark": (False, signs(lambda c: b"\xef\xbb\xbf" + c)),
    "half": (False, signs(lambda c: c[: len(c) // 2])),
    "nothing signed": (False, signs(lambda c: b"")),
    "empty": (False, lambda b, _: (b / SIGNED).write_bytes(b"")),
    "a folder": (False, instead(lambda p: p.mkdir())),
    "a pipe": (False, instead(os.mkfifo)),
    "a link to nothing": (False, instead(lambda p: p.symlink_to("nothing"))),
    "a link in a circle": (False, instead(lambda p: p.symlink_to(p))),
    "without an end": (False, lambda b, _: os.truncate(b / SIGNED, 2**26 + 1)),
}


@pytest.mark.parametrize("kind", STORED)
def test_what_was_signed_is_checked_as_in_python(
    run: Run, stored: Path, tmp_path: Path, kind: str
) -> None:
    trusted, store = STORED[kind]
    with_engine(stored)
    key = make_key(tmp_path / "key.pem")
    sign_bundle(stored, key)
    store(stored, key)
    result, asked = run("cmt_check", stored, "--trust", tmp_path / "key.pem")
    assert result.returncode == (0 if trusted else 2), result.stdout + result.stderr
    assert (asked != []) == trusted
    assert len(result.stderr.splitlines()) == int(not trusted)
    if trusted:
        assert check(open_bundle(stored), tmp_path / "key.pem").trusted
    else:
        with pytest.raises(InputError, match="is not signed with the key"):
            check(open_bundle(stored), tmp_path / "key.pem")


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


NO_KEYS = {
    "empty": b"",
    "text": b"this is no key",
    "private": Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ),
    "X25519": pem(X25519PrivateKey.generate()),
    "elliptic curve": pem(generate_private_key(SECP256R1())),
    "encrypted": b"-----BEGIN PUBLIC KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,"
    + b"0" * 32
    + b"\n\n"
    + b"A" * 64
    + b"\n-----END PUBLIC KEY-----\n",
    "cut off": pem(Ed25519PrivateKey.generate())[:60],
    "long": b" " * 20_000 + pem(Ed25519PrivateKey.generate()),
}


@pytest.mark.parametrize("kind", [*NO_KEYS, "none", "folder", "pipe", "endless", "unset"])
def test_what_is_no_key_is_refused(run: Run, stored: Path, tmp_path: Path, kind: str) -> None:
    with_engine(stored)
    sign_bundle(stored, make_key(tmp_path / "key.pem"))
    path: str | Path = tmp_path / "other.pem"
    if kind in NO_KEYS:
        (tmp_path / "other.pem").write_bytes(NO_KEYS[kind])
    os.mkfifo(tmp_path / "pipe")
    path = {"folder": tmp_path, "pipe": tmp_path / "pipe", "endless": "/dev/zero"}.get(kind, path)
    result, asked = run("cmt_check", stored, "--trust", "" if kind == "unset" else path)
    assert (result.returncode, asked) == (2, [])
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("built_with", [{"tensorrt_rtx": "10.3.0"}])
def test_an_engine_of_another_library_is_left_out_before_it_is_read(
    run: Run, stored: Path, built_with: dict[str, str]
) -> None:
    with_engine(stored, built_with=built_with)
    result, asked = run("cmt_check", stored, "--trust-unsigned")
    assert (result.returncode, asked) == (2, [])
    assert "it was built with tensorrt_rtx 10.3.0 for sm87; this build has tensorrt 10.3.0" in (
        result.stdout
    )


def test_what_tensorrt_refuses_is_one_line(run: Run, stored: Path) -> None:
    with_engine(stored, "no engine")
    result, asked = run("cmt_check", stored, "--trust-unsigned")
    assert (result.returncode, asked[-1]) == (2, "deserialised")
    assert "cannot load it on this GPU (this is no engine): export it anew" in result.stderr
    with_engine(stored, "ENGINE 1 64 64 3")
    result, _ = run("cmt_check", stored, "--trust-unsigned")
    assert "does not answer with one number for each label" in result.stderr
    with_engine(stored, "ENGINE 2 64 64 2")
    result, _ = run("cmt_check", stored, "--trust-unsigned")
    assert "does not have the manifest's input" in result.stderr


def test_answers_that_are_no_numbers_fail(run: Run, stored: Path) -> None:
    with_engine(stored, "ENGINE 1 64 64 2 nan")
    result, _ = run("cmt_check", stored, "--trust-unsigned")
    assert result.returncode == 1
    assert f"FAILED  {ENGINE}: differs by inf" in result.stdout
    photo = stored / "golden" / "photo.jpg"
    result, _ = run("cmt_classify", stored, photo, "--trust-unsigned")
    assert result.returncode == 2
    assert "answered with NaN or infinity" in result.stderr


def test_a_range_of_batches_runs_with_the_usual_one(run: Run, stored: Path) -> None:
    with_engine(stored, "ENGINE -1 64 64 2", batches=[1, 1, 8])
    result, _ = run("cmt_check", stored, "--trust-unsigned")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_signature_covers_what_python_says(runtime: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    doubles = [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(3000)]
    doubles += [float(f"{rng.randrange(10**6)}e{e}") for e in range(-320, 303)]
    doubles += [10.0**e for e in range(-20, 25)] + [2.0**e for e in range(-1074, 1024, 7)]
    doubles += [0.0, -0.0, 5e-324, 1.7976931348623157e308, 9007199254740993.0, 1e16, 123456.0]
    numbers = [x for x in doubles if np.isfinite(x)]
    numbers += [0, -1, 2**63, 2**64 - 1, -(2**63)]
    characters = [*range(0x300), 0x2028, 0xFFFF, 0x1F600, 0x10FFFF]
    names = {f"{chr(c)}é": i for i, c in enumerate(characters)}
    values = [
        {"numbers": numbers, "schema": 1, "reports": [1], "b": {}, "a": [], "": None},
        {"names": names, "text": "".join(map(chr, characters)), "x": [True, False, [{}]]},
    ]
    texts = [json.dumps(value, ensure_ascii=False) for value in values]
    texts.append('{"x": [1e2, 1E+2, 1.0, 100000000000000000000, -0, 1.10, 0.1e1]}')
    paths = [tmp_path / f"{i}.json" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    result = subprocess.run(
        [runtime / "tests" / "print_signed"],
        input="".join(f"{path}\n" for path in paths),
        capture_output=True,
        text=True,
        check=True,
    )
    for line, text in zip(result.stdout.splitlines(), texts, strict=True):
        content = strict_json.parse(text)
        content.pop("reports", None)
        assert line == json.dumps(content, sort_keys=True, separators=(",", ":"))
