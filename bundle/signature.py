"""Signatures of bundles: who made this, where a hash says only that it is whole.

The key's kind decides: Ed25519 signs in `SIGNATURE`, which C++ reads as well, an elliptic curve in
OpenSSF's format (`bundle.model_signing_format`). A signature covers the bytes of `SIGNED`: the
manifest, and through its hashes every file, but for the reports that `cmt-bench` adds to wherever
it measures. The report as it was exported is a file of its own among those. Early bundles have no
`SIGNED`: its bytes are those that `_signed_bytes` makes of the manifest, in early bundles and in
later ones.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt import strict_json
from cmt.bundle import model_signing_format as openssf
from cmt.bundle.manifest import MANIFEST, SEAL, Manifest
from cmt.bundle.reader import OpenBundle
from cmt.errors import InputError
from cmt.files import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = f"{MANIFEST}.sig"
SIGNED = "manifest.signed.json"
_LONGEST_KEY = 10_000
_LONGEST_SIGNATURE = 200
Signer = Callable[[Path, Manifest], None]
"""Writes the signature of the bundle in a folder, which has this manifest."""


def read_signers(paths: Sequence[Path]) -> list[Signer]:
    """What signs with these private keys.

    Raises:
        InputError: of `read_private_key`, two of one kind, or a package is missing.
    """
    signers: dict[str, Signer] = {}
    for path in paths:
        key = read_private_key(path)
        if isinstance(key, _keys()[0].Ed25519PrivateKey):
            name, signer = SIGNATURE, partial(sign, key=key)
        else:
            openssf.package("signing")  # a missing one is said before any work
            name, signer = openssf.MODEL_SIGNATURE, partial(_sign_for_openssf, key=path)
        if name in signers:
            raise InputError(f"--sign {path}: {name} has one key's signature: give one of its kind")
        signers[name] = signer
    return list(signers.values())


def read_private_key(path: Path) -> Any:
    """The key to sign with; raises InputError for what is no Ed25519 or elliptic key in PEM."""
    _keys()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def load(content: bytes) -> Any:
        return load_pem_private_key(content, password=None)

    return _read_key(path, load, "private")


def sign(folder: Path, manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write the Ed25519 signature of the bundle in `folder`."""
    content = _signed_bytes(manifest)
    text = base64.b64encode(key.sign(content)).decode()
    (folder / SIGNED).write_bytes(content)
    (folder / SIGNATURE).write_text(f"{text}\n")


def _sign_for_openssf(folder: Path, manifest: Manifest, key: Path) -> None:
    (folder / SIGNED).write_bytes(_signed_bytes(manifest))
    reports = [entry["path"] for entry in manifest["reports"]]
    openssf.sign_folder(folder, key, [MANIFEST, SEAL, SIGNATURE, *reports])


def check(bundle: OpenBundle, public_key: Path) -> OpenBundle:
    """The bundle as a trusted one.

    Raises:
        InputError: it is not signed with the private part of this key, or not as it is now.
    """
    ed25519, _ = _keys()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _read_key(public_key, load_pem_public_key, "public")
    by_ed25519 = isinstance(key, ed25519.Ed25519PublicKey)
    file = bundle.path / (SIGNATURE if by_ed25519 else openssf.MODEL_SIGNATURE)
    if file.is_symlink() or not file.is_file():
        raise InputError(
            f"{bundle.path} is not signed (it has no {file.name}): "
            "get it from whoever holds the key"
        )
    present = _signed_bytes(bundle.manifest)
    try:
        stored = bundle.path / SIGNED
        lacks_it = by_ed25519 and not os.path.lexists(stored)
        content = present if lacks_it else strict_json.read(stored)
        if by_ed25519:
            text = read_regular(file, _LONGEST_SIGNATURE)
            key.verify(base64.b64decode(text.strip(), validate=True), content)
        else:
            openssf.verify_folder(bundle.path, public_key, SIGNED, content)
        matches = _signed_bytes(strict_json.parse(content)) == present
    except InputError:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise _not_signed(bundle, public_key) from error
    if not matches:
        raise _not_signed(bundle, public_key)
    return replace(bundle, trusted=True)


def _not_signed(bundle: OpenBundle, public_key: Path) -> InputError:
    return InputError(
        f"{bundle.path} is not signed with the key of {public_key}: "
        "get it from whoever holds the key"
    )


def _read_key(path: Path, load: Callable[[bytes], Any], part: str) -> Any:
    ed25519, elliptic = _keys()
    kinds = {
        "private": (ed25519.Ed25519PrivateKey, elliptic.EllipticCurvePrivateKey),
        "public": (ed25519.Ed25519PublicKey, elliptic.EllipticCurvePublicKey),
    }[part]
    try:
        key = load(read_regular(path, _LONGEST_KEY))
        if not isinstance(key, kinds):
            raise ValueError("a key of another kind")
        if isinstance(key, kinds[1]) and key.curve.name not in openssf.CURVES:
            raise ValueError(f"the curve is none of {', '.join(openssf.CURVES)}")
    except Exception as error:  # the library raises many kinds
        raise InputError(
            f"{path} is no {part} Ed25519 or elliptic key in PEM ({error}): make one with "
            "openssl genpkey -algorithm ed25519, and openssl pkey -pubout of that"
        ) from error
    return key


def _keys() -> tuple[Any, Any]:
    """`cryptography`'s modules of Ed25519 and of elliptic curves."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    except ModuleNotFoundError as error:
        raise InputError("signatures need a package: pip install 'cmt-export[sign]'") from error
    return ed25519, ec


def _signed_bytes(manifest: Mapping[str, object]) -> bytes:
    """The manifest without its reports, in one way to write it."""
    content = {key: value for key, value in manifest.items() if key != "reports"}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def expect_run(bundle: OpenBundle, runs: Sequence[str]) -> None:
    """Raise InputError unless a bundle is of one of these runs; none stands for any.

    An older bundle of the same maker has a good signature too.
    """
    run = bundle.manifest.get("run", "unknown")
    if runs and run not in runs:
        raise InputError(
            f"{bundle.path} is of the run {run}, not of {', '.join(runs)}: get that export's bundle"
        )
