"""`--workers`: where the machines are, and a client of their scheduler.

Whoever may connect to a Dask scheduler or worker runs programs on it, and on whoever asked it. So
nothing listens beyond this machine but with TLS, where both sides show a certificate.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cmt.errors import InputError, MachineError
from cmt.fleet.certificates import AUTHORITY, PARTS, file_of

TIMING = "TIMING"
"""The Dask resource of which a worker has one: each task of ours takes it, so runs alone there."""
IMAGES = "CMT_IMAGES"
"""The environment variable that says where a worker has its images."""
CONNECTING_SECONDS = 20.0
_OWN_PAGES = "127.0.0.1:0"
"""Where Dask's pages of state are, which have no TLS and cannot be left out."""
FORMS = "local, local:2, tcp://127.0.0.1:8786, tls://scheduler:8786, ssh://host,host"


@contextmanager
def connected(workers: str, certificates: Path | None, images: Path | None) -> Iterator[Any]:
    """A `distributed.Client` of the machines that `--workers` names.

    Workers of `local` are this machine's, on loopback, with `images` as theirs; they end with the
    context, as do those of `ssh`.

    Raises:
        InputError: it names none, an address beyond this machine has no TLS, or Dask is missing.
        MachineError: nothing answers there, or it does not take these certificates.
    """
    _require_dask()
    for name in ("distributed", "distributed.client"):  # what ends a run, it says itself
        logging.getLogger(name).setLevel(logging.CRITICAL)
    where = urlsplit(workers if "://" in workers else f"{workers}://")
    if (local := re.fullmatch(r"local(?::([1-9][0-9]{0,3}))?", workers)) is not None:
        with _local(int(local[1] or 1), images) as cluster, _client(cluster) as client:
            yield client
    elif where.scheme in ("tcp", "tls") and where.hostname and where.port:
        if where.scheme == "tcp" and not _is_loopback(where.hostname):
            raise InputError(
                f"--workers {workers} would send programs and answers unprotected: take tls:// "
                "and --certificates, which `cmt-fleet certificates` makes"
            )
        security = None if where.scheme == "tcp" else _security(certificates)
        with _client(workers, security=security) as client:
            yield client
    elif where.scheme == "ssh" and where.netloc:
        hosts = where.netloc.split(",")
        with _by_ssh(hosts, certificates) as cluster, _client(cluster) as client:
            yield client
    else:
        raise InputError(f"--workers {workers} is no address: give one such as {FORMS}")


def _require_dask() -> None:
    try:
        import distributed  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("fleets need a package: pip install 'cmt-export[fleet]'") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _local(count: int, images: Path | None) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=_OWN_PAGES,
        worker_dashboard_address=_OWN_PAGES,
        silence_logs=logging.CRITICAL,
        memory_limit=0,
        resources={TIMING: 1},
        env={IMAGES: str(images.absolute())} if images is not None else {},
    )


@contextmanager
def _client(address: Any, **options: Any) -> Iterator[Any]:
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    # Of Python's and others': what travels is text.
    warnings.simplefilter("ignore", VersionMismatchWarning)
    try:
        client = Client(address, timeout=CONNECTING_SECONDS, set_as_default=False, **options)
    except OSError as error:  # of TLS too; Dask's TimeoutError is one
        raise MachineError(
            f"the scheduler at {address} cannot be reached, or refuses these certificates ({error})"
        ) from error
    with client:
        yield client


def _files(certificates: Path | None) -> dict[str, str]:
    """The files of a folder that `cmt-fleet certificates` made, by Dask's names, that are there."""
    if certificates is None:
        raise InputError("tls:// and ssh:// need --certificates: see `cmt-fleet certificates`")
    names = {"ca": AUTHORITY, **{part: file_of(part) for part in PARTS}}
    files = {part: certificates.absolute() / name for part, name in names.items()}
    for part in ("ca", "client"):
        if not files[part].is_file():
            raise InputError(f"there is no {files[part]}: make it with `cmt-fleet certificates`")
    return {part: str(path) for part, path in files.items() if path.is_file()}


def _security(certificates: Path | None) -> Any:
    from distributed import Security

    files = _files(certificates)
    try:
        security = Security(
            require_encryption=True, tls_ca_file=files["ca"], tls_client_cert=files["client"]
        )
        security.get_connection_args("client")
    except (OSError, ValueError) as error:  # ssl.SSLError is the first
        raise InputError(
            f"{certificates} has no usable certificates ({error}): make them with "
            "`cmt-fleet certificates`"
        ) from error
    return security


@contextmanager
def _by_ssh(hosts: list[str], certificates: Path | None) -> Iterator[Any]:
    """A scheduler on the first host and a worker on every one; all have the certificates, under the
    same path as here."""
    import dask
    from distributed import SSHCluster

    files = _files(certificates)
    pages = {"dashboard": False, "dashboard_address": _OWN_PAGES}
    tls = {"ca-file": files["ca"]}
    tls |= {part: {"cert": files[part]} for part in PARTS if part in files}  # type: ignore[misc]
    with dask.config.set({"distributed.comm": {"require-encryption": True, "tls": tls}}):
        try:
            cluster = SSHCluster(
                [hosts[0], *hosts],
                scheduler_options={"protocol": "tls://", "port": 0, **pages},
                worker_options={
                    "nthreads": 1,
                    "resources": {TIMING: 1},
                    "memory_limit": 0,
                    **pages,
                },
                security=_security(certificates),
            )
        except ImportError as error:
            raise InputError("ssh:// needs a package: pip install asyncssh") from error
        except Exception as error:  # asyncssh and Dask raise many kinds
            raise MachineError(
                f"no cluster can be started on {', '.join(hosts)} ({error})"
            ) from error
        with cluster:
            yield cluster
