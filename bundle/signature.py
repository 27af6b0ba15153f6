"""Ed25519 signatures of bundles: who made this, where a hash says only that it is whole.

A signature covers the bytes of `SIGNED`: the manifest, and through its hashes every file, but for
the reports that `cmt-bench` adds to wherever it measures. The report as it was exported is a file
of its own among those. Early bundles have no `SIGNED`: its bytes are those that `signed_bytes`
makes of the manifest, in early bundles and in later ones.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmt import strict_json
from cmt.bundle.manifest import MANIFEST, Manifest
from cmt.bundle.reader import OpenBundle
from cmt.errors import InputError
from cmt.files import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = f"{MANIFEST}.sig"
SIGNED = "manifest.signed.json"
_LONGEST_KEY = 10_000
_LONGEST_SIGNATURE = 200


def sign(folder: Path, manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write the signature of the bundle in `folder`."""
    content = signed_bytes(manifest)
    text = base64.b64encode(key.sign(content)).decode()
    (folder / SIGNED).write_bytes(content)
    (folder / SIGNATURE).write_text(f"{text}\n")


def check(bundle: OpenBundle, public_key: Path) -> OpenBundle:
    """The bundle as a trusted one.

    Raises:
        InputError: it is not signed with the private part of this key, or not as it is now.
    """
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _read_key(public_key, load_pem_public_key, ed25519.Ed25519PublicKey, "public")
    unsigned = InputError(
        f"{bundle.path} is not signed with the key of {public_key}: "
        "get it from whoever holds the key"
    )
    file = bundle.path / SIGNATURE
    if file.is_symlink() or not file.is_file():
        raise InputError(f"{bundle.path} is not signed: get it from whoever holds the key")
    present = signed_bytes(bundle.manifest)
    try:
        signature = base64.b64decode(read_regular(file, _LONGEST_SIGNATURE).strip(), validate=True)
        stored = bundle.path / SIGNED
        content = strict_json.read(stored) if os.path.lexists(stored) else present
        key.verify(signature, content)
        signed = signed_bytes(strict_json.parse(content))
    except (InvalidSignature, ValueError, OSError, AttributeError) as error:
        raise unsigned from error
    if signed != present:
        raise unsigned
    return replace(bundle, trusted=True)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with; raises InputError for what is no Ed25519 key in PEM, unencrypted."""
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    def load(content: bytes) -> Any:
        return load_pem_private_key(content, password=None)

    return _read_key(path, load, ed25519.Ed25519PrivateKey, "private")


def _read_key(path: Path, load: Callable[[bytes], Any], kind: type, part: str) -> Any:
    try:
        key = load(read_regular(path, _LONGEST_KEY))
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


def signed_bytes(manifest: Mapping[str, object]) -> bytes:
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
