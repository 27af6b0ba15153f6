"""Ed25519 signatures of bundles: who made this, where a hash says only that it is whole.

A signature covers the manifest, and through its hashes every file, but for the reports: those
are rewritten wherever `cmt-bench` measures, and nothing is run from them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt.bundle.manifest import MANIFEST
from cmt.bundle.reader import OpenBundle
from cmt.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = f"{MANIFEST}.sig"
_LONGEST_KEY = 10_000


def sign(folder: Path, manifest: dict[str, Any], key: Ed25519PrivateKey) -> None:
    """Write the signature of the bundle in `folder`."""
    text = base64.b64encode(key.sign(_signed_bytes(manifest))).decode()
    (folder / SIGNATURE).write_text(f"{text}\n")


def check(bundle: OpenBundle, public_key: Path) -> None:
    """Raise InputError unless the bundle is signed with the private part of this key."""
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _read_key(public_key, load_pem_public_key, ed25519.Ed25519PublicKey, "public")
    file = bundle.path / SIGNATURE
    try:
        if file.is_symlink() or not file.is_file():
            raise InputError(f"{bundle.path} is not signed: get it from whoever holds the key")
        with file.open("rb") as opened:
            signature = base64.b64decode(opened.read(200).strip(), validate=True)
        key.verify(signature, _signed_bytes(bundle.manifest))
    except (InvalidSignature, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{bundle.path} is not signed with the key of {public_key}: "
            "get it from whoever holds the key"
        ) from error


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with; raises InputError for what is no Ed25519 key in PEM, unencrypted."""
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def load(content: bytes) -> Any:
        return load_pem_private_key(content, password=None)

    return _read_key(path, load, ed25519.Ed25519PrivateKey, "private")


def _read_key(path: Path, load: Callable[[bytes], Any], kind: type, part: str) -> Any:
    try:
        with path.open("rb") as file:
            key = load(file.read(_LONGEST_KEY))
        if not isinstance(key, kind):
            raise ValueError("a key of another kind")
    except Exception as error:  # the library raises many kinds
        raise InputError(
            f"{path} is no {part} Ed25519 key in PEM ({error}): make one with "
            "openssl genpkey -algorithm ed25519, and openssl pkey -pubout of that"
        ) from error
    return key


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise InputError("signatures need a package: pip install 'cmt-export[sign]'") from error
    return ed25519


def _signed_bytes(manifest: dict[str, Any]) -> bytes:
    """The manifest without its reports, in one way to write it."""
    content = {key: value for key, value in manifest.items() if key != "reports"}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
