"""A private authority, and a certificate for each part of a fleet that it vouches for."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from cmt.errors import InputError

AUTHORITY = "ca.pem"
PARTS = ("scheduler", "worker", "client")


def file_of(part: str) -> str:
    """The name of a part's file: its certificate and its private key, in PEM."""
    return f"{part}.pem"


def make_certificates(folder: Path, days: int) -> None:
    """Write `AUTHORITY` and each of `PARTS`, good for so many days, into a new folder.

    The authority's own key is written nowhere: nobody can make another certificate that these
    machines would take, and a certificate that was lost goes with all the others.

    Raises:
        InputError: the folder exists or cannot be made, or `cryptography` is missing.
    """
    try:
        from cryptography.hazmat.primitives.serialization import Encoding
    except ModuleNotFoundError as error:
        raise InputError("certificates need a package: pip install 'cmt-export[fleet]'") from error
    issuer, authority = _authority(days)
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise InputError(f"cannot make {folder} ({error.strerror}): name a new folder") from error
    (folder / AUTHORITY).write_bytes(authority.public_bytes(Encoding.PEM))
    for part in PARTS:
        _write_private(folder / file_of(part), _issued(part, issuer, days))


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _name(part: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"cmt-fleet {part}")])


def _builder(part: str, days: int, key: Any) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(part))
        .issuer_name(_name("authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of boards are seldom right
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _authority(days: int) -> tuple[Any, Any]:
    """(key, certificate) of one that vouches for certificates alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("authority", days, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _issued(part: str, issuer: Any, days: int) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(part, days, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(issuer, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM) + private
