"""Signatures in OpenSSF's format: made here, taken by its own package, and the other way round."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import hashing, signing
from model_signing._cli import main as model_signing
from new_report import replace_report
from no_files import put_no_file

from cmt.bundle.model_signing_format import MODEL_SIGNATURE
from cmt.bundle.reader import open_bundle
from cmt.bundle.signature import SIGNATURE, SIGNED, check, read_signers
from cmt.bundle.writer import write_manifest
from cmt.errors import InputError
from cmt.export.assembly import keep_exported
from cmt.report.comparison import Trust, read_source
from cmt.report.document import report_of


def write_keys(folder: Path, name: str, key: Any) -> tuple[Path, Path]:
    """Files of a private and its public key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    form = PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, form))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "maker", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def public(keys: tuple[Path, Path]) -> Path:
    return keys[1]


@pytest.fixture
def signed(stored: Path, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """As an export signs it with a key of each kind."""
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest |= {"exported": keep_exported(stored)}
    write_manifest(stored, manifest)
    other, _ = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    for sign in read_signers([keys[0], other]):
        sign(stored, manifest)
    return stored


def official(bundle: Path, public: Path) -> bool:
    """What `model_signing verify key` says of a bundle."""
    given = ["--signature", str(bundle / MODEL_SIGNATURE), "--public_key", str(public)]
    return CliRunner().invoke(model_signing, ["verify", "key", str(bundle), *given]).exit_code == 0


def test_both_accept_it_also_where_it_was_measured(
    signed: Path, public: Path, tmp_path: Path
) -> None:
    assert official(signed, public)
    assert check(open_bundle(signed), public).trusted
    assert check(open_bundle(signed), tmp_path / "other.pub.pem").trusted
    bundle = open_bundle(signed)
    replace_report(bundle, {**report_of(bundle), "command": "another"})
    assert official(signed, public)
    assert check(open_bundle(signed), public).trusted
    assert read_source(str(signed), Trust(public)).report["command"] != "another"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["labels"].reverse(),
        lambda m: m["artefacts"].pop(0),
        lambda m: m["artefacts"][-1]["settings"].update(NUM_STREAMS=2),
    ],
)
def test_a_changed_bundle_with_hashes_made_anew_is_refused(
    signed: Path, public: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    manifest = json.loads((signed / "manifest.json").read_text())
    change(manifest)
    write_manifest(signed, manifest)
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), public)


@pytest.mark.parametrize("name", ["golden/photo.jpg", SIGNED, "report.exported.json"])
def test_one_changed_byte_is_refused_by_both(
    signed: Path, public: Path, rewrite: Callable[..., None], name: str
) -> None:
    content = bytearray((signed / name).read_bytes())
    content[-2] ^= 1
    (signed / name).write_bytes(content)
    rewrite(signed)
    assert not official(signed, public)
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), public)


def test_a_signature_of_other_files_of_the_same_signer_is_refused(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    (signed / MODEL_SIGNATURE).unlink()
    other = [path for path in signed.iterdir() if path.name != "golden"]
    hashed = hashing.Config().set_ignored_paths(paths=[path.name for path in other])
    signer = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    signer.set_hashing_config(hashed).sign(signed, signed / MODEL_SIGNATURE)
    assert official(signed, keys[1])  # which trusts what the signature leaves out
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), keys[1])


def test_another_key_or_no_signature_is_refused(signed: Path, public: Path, tmp_path: Path) -> None:
    stranger = write_keys(tmp_path, "stranger", ec.generate_private_key(ec.SECP256R1()))[1]
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), stranger)
    (signed / MODEL_SIGNATURE).unlink()
    with pytest.raises(InputError, match=r"is not signed \(it has no model.sig\)"):
        check(open_bundle(signed), public)


def spoilt(text: bytes) -> dict[str, bytes]:
    """Signatures that are none."""
    bundle = json.loads(text)
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"]).replace(b"photo", b"phota")
    encoded = base64.b64encode(payload).decode()

    def with_envelope(**fields: object) -> bytes:
        return json.dumps({**bundle, "dsseEnvelope": {**envelope, **fields}}).encode()

    return {
        "empty": b"",
        "list": b"[]",
        "other content": with_envelope(payload=encoded),
        "no signature": with_envelope(signatures=[]),
        "huge": text + b" " * 2**20,
    }


@pytest.mark.parametrize("kind", ["empty", "list", "other content", "no signature", "huge"])
def test_what_is_no_signature_is_refused(signed: Path, public: Path, kind: str) -> None:
    path = signed / MODEL_SIGNATURE
    path.write_bytes(spoilt(path.read_bytes())[kind])
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), public)


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_signature_that_is_no_file_is_refused(signed: Path, public: Path, kind: str) -> None:
    put_no_file(signed / MODEL_SIGNATURE, kind)
    with pytest.raises(InputError, match="is not signed"):
        check(open_bundle(signed), public)


def test_two_keys_of_one_kind_are_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    second = shutil.copy(keys[0], tmp_path / "second.pem")
    with pytest.raises(InputError, match="has one key's signature"):
        read_signers([keys[0], second])


def test_a_bundle_without_the_other_signature_is_trusted_by_this_one(
    signed: Path, public: Path
) -> None:
    (signed / SIGNATURE).unlink()
    assert official(signed, public)
    assert check(open_bundle(signed), public).trusted
