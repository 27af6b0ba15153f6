"""A bundle that is to be trusted is opened only if its maker's key signed it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from new_report import replace_report

from cmt.bundle.reader import open_bundle
from cmt.bundle.signature import SIGNATURE, check, read_private_key, sign
from cmt.bundle.writer import write_manifest
from cmt.commands import main
from cmt.errors import InputError
from cmt.export.pipeline import Bundle
from cmt.report.document import report_of


def write_key(folder: Path, name: str, key: Any = None, password: bytes = b"") -> tuple[Path, Path]:
    """Files of a private and its public key."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """The public key that `signed` is signed with."""
    return write_key(tmp_path, "maker")[1]


@pytest.fixture
def signed(openvino_bundle: Path, tmp_path: Path, public: Path) -> Path:
    folder = shutil.copytree(openvino_bundle, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    sign(folder, manifest, read_private_key(tmp_path / "maker.pem"))
    return folder


def test_a_signed_bundle_is_trusted_also_where_it_was_measured(signed: Path, public: Path) -> None:
    check(open_bundle(signed), public)
    bundle = open_bundle(signed)
    replace_report(bundle, {**report_of(bundle), "command": "another"})
    check(open_bundle(signed), public)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["labels"].reverse(),
        lambda m: m["input"].update(mean=[0.5, 0.5, 0.5]),
        lambda m: m["artefacts"].pop(0),
        lambda m: m["artefacts"][-1]["settings"].update(NUM_STREAMS=2),
        lambda m: m["golden"].update(max_grey_levels=255),
    ],
)
def test_a_changed_bundle_with_hashes_made_anew_is_refused(
    signed: Path, public: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    manifest = json.loads((signed / "manifest.json").read_text())
    change(manifest)
    write_manifest(signed, manifest)
    bundle = open_bundle(signed)
    with pytest.raises(InputError, match="is not signed with the key"):
        check(bundle, public)


def test_an_export_signs_its_bundle(uint8_bundle: Bundle) -> None:
    bundle = open_bundle(uint8_bundle.path)
    check(bundle, bundle.path.with_suffix(".pub.pem"))
    assert not list(bundle.path.rglob("*.pem"))


@pytest.mark.parametrize("content", [b"", b"AAAA", b"no base64!", b"A" * 10_000, b"\xff"])
def test_what_is_no_signature_is_refused(signed: Path, public: Path, content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    with pytest.raises(InputError, match="is not signed with"):
        check(open_bundle(signed), public)


def test_another_key_or_no_signature_is_refused(signed: Path, public: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), write_key(tmp_path, "other")[1])
    (signed / SIGNATURE).unlink()
    with pytest.raises(InputError, match="is not signed: get it"):
        check(open_bundle(signed), public)


@pytest.mark.parametrize("kind", ["missing", "text", "public", "rsa", "encrypted"])
def test_what_is_no_key_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    if kind == "text":
        path.write_text("secret")
    elif kind == "public":
        path = write_key(tmp_path, "key")[1]
    elif kind == "rsa":
        write_key(tmp_path, "key", rsa.generate_private_key(65537, 1024))
    elif kind == "encrypted":
        write_key(tmp_path, "key", password=b"x")
    with pytest.raises(InputError, match=r"is no private Ed25519 key.*openssl genpkey"):
        read_private_key(path)


def test_the_command_refuses_an_untrusted_bundle_before_it_runs_anything(
    signed: Path, public: Path, tmp_path: Path
) -> None:
    def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        code = "from cmt.commands.main import run; run('cmt-bench')"
        command = [sys.executable, "-c", code, str(signed), "--verify", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert bench("--trust", public).returncode == 0
    refused = bench("--trust", write_key(tmp_path, "other")[1])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1


def test_without_the_package_the_command_says_what_to_install(
    signed: Path, public: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    monkeypatch.setattr(sys, "argv", ["cmt-bench", str(signed), "--trust", str(public)])
    with pytest.raises(SystemExit) as stop:
        main.run("cmt-bench")
    assert stop.value.code == 2
    assert "pip install 'cmt-export[sign]'" in capsys.readouterr().err
