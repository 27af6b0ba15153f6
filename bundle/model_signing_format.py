"""Signatures in the format of OpenSSF's model signing, which `model_signing verify key` takes.

A signature of this kind lists every file of the folder with its sha256. The files that `cmt-bench`
rewrites are left out, as in `bundle.signature`, whose signed bytes are among those that are listed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cmt.errors import InputError
from cmt.files import read_regular

MODEL_SIGNATURE = "model.sig"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Of the keys that the format takes."""
_LONGEST = 2**20


def sign_folder(folder: Path, private_key: Path, left_out: Sequence[str]) -> None:
    """Write the signature of all files in `folder` but those that are left out, by their names."""
    signing, hashing = package("signing"), package("hashing")
    hashed = hashing.Config().set_ignored_paths(paths=[*left_out, MODEL_SIGNATURE])
    signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
    signer.set_hashing_config(hashed).sign(folder, folder / MODEL_SIGNATURE)


def verify_folder(folder: Path, public_key: Path, name: str, content: bytes) -> None:
    """Check that a folder's signature is of this key and lists its files as they are now.

    Args:
        name, content: a file that must be among them, as it was read.

    Raises:
        Exception: of some kind, as the package has many: it is not.
    """
    verifying = package("verifying")
    text = read_regular(folder / MODEL_SIGNATURE, _LONGEST)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    with tempfile.TemporaryDirectory() as own:  # where nobody changes it between two readings
        copy = Path(own, MODEL_SIGNATURE)
        copy.write_bytes(text)
        verifier.set_ignore_unsigned_files(True).verify(folder, copy)
    listed = {entry["name"]: entry["digest"] for entry in _resources(text)}
    if listed.get(name) != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{name} is not signed")


def _resources(signature: bytes) -> list[dict[str, Any]]:
    payload = base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"])
    resources: list[dict[str, Any]] = json.loads(payload)["predicate"]["resources"]
    return resources


def package(module: str) -> Any:
    """A module of the package that knows the format; InputError says what to install."""
    try:
        return import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise InputError(
            "signatures by elliptic keys need a package: pip install 'cmt-export[openssf]'"
        ) from error
