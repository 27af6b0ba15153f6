"""Who may take part in a fleet: certificates, addresses, and what replies are believed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_report import make_report

from cmt.bundle.reader import open_bundle
from cmt.bundle.torch_answers import Answers
from cmt.errors import InputError, MachineError
from cmt.fleet import replies
from cmt.fleet.certificates import make_certificates
from cmt.fleet.cluster import _local, connected
from cmt.fleet.copies import receive
from cmt.fleet.listed import open_listed
from cmt.measure.on_device import File


def security(folder: Path) -> Any:
    from distributed import Security

    parts = {f"tls_{part}_cert": str(folder / f"{part}.pem") for part in ("scheduler", "worker")}
    return Security(
        tls_ca_file=str(folder / "ca.pem"),
        tls_client_cert=str(folder / "client.pem"),
        require_encryption=True,
        **parts,
    )


def test_who_has_no_certificate_of_the_fleet_is_turned_away(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_certificates(ours, days=1)
    make_certificates(theirs, days=1)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in ours.glob("[!c]*.pem"))
    with start(1, protocol="tls://", security=security(ours)) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        with connected(address, ours, None) as client:
            assert len(client.nthreads()) == 1
        monkeypatch.setattr("cmt.fleet.cluster.CONNECTING_SECONDS", 1.0)
        with (
            pytest.raises(MachineError, match="refuses these certificates"),
            connected(address, theirs, None),
        ):
            pass
        plain = address.replace("tls://", "tcp://")
        with pytest.raises(OSError), Client(plain, timeout=1, set_as_default=False):  # noqa: PT011
            pass


def test_nothing_of_a_local_fleet_listens_beyond_this_machine() -> None:
    with _local(0, None) as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        assert cluster.scheduler.http_server.address == "127.0.0.1"


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("tcp://192.0.2.1:8786", "unprotected: take tls://"),
        ("tcp://somewhere:8786", "unprotected: take tls://"),
        ("tls://192.0.2.1:8786", "need --certificates"),
        ("ssh://one,two", "need --certificates"),
        ("local:0", "is no address"),
        ("nowhere", "is no address"),
        ("tls://192.0.2.1", "is no address"),
    ],
)
def test_addresses_that_will_not_do_are_refused(workers: str, said: str) -> None:
    with pytest.raises(InputError, match=said), connected(workers, None, None):
        pass


def test_certificates_are_made_once_and_say_how_they_are_handed_out(
    fleet: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    status, output, _ = fleet("certificates", folder)
    assert status == 0
    assert "dask worker tls://SCHEDULER:8786" in output
    assert "programs on every machine" in output
    assert output.count("--dashboard-address 127.0.0.1:0") == 2  # pages that have no TLS
    status, _, error = fleet("certificates", folder)
    assert (status, "name a new folder" in error) == (2, True)


@pytest.mark.parametrize("key", ["../secret.png", "/etc/passwd", "a//b.png"])
def test_no_name_of_an_image_or_file_leads_out_of_its_folder(
    key: str, tmp_path: Path, own_cache: Path
) -> None:
    with pytest.raises(InputError, match="no path within"):
        open_listed("photos", [key], None)
    entry: Any = {"path": key, "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(InputError, match="no path within"):
        receive("0" * 64, entry, 0, b"x")


def test_a_file_that_is_not_what_its_entry_says_is_not_kept(own_cache: Path) -> None:
    entry: Any = {"path": "a/b.bin", "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(InputError, match="sha256 differs"):
        receive("0" * 64, entry, 0, b"x")
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []


FILES = [File({"path": "a"}, None, {}, 1), File({"path": "b"}, None, {}, 1, True)]  # type: ignore[typeddict-item]
ANSWERS = Answers({}, np.array([[1, 0]], np.int32), np.zeros((1, 2), np.float32), {})
GOOD: dict[str, Any] = {
    "places": [0, 2],
    "rows": [0, -1],
    "skipped": ["broken"],
    "first0": [[1, 0], [0, 1]],
    "first1": [[-1], [0]],
    "beside0": [[0.5, 0.25], [1.0, 2.0]],
}


def shard(reply: dict[str, Any]) -> Any:
    asked, rows = np.array([7, 8, 9]), np.array([0, 0, -1])
    return replies.shard_of_reply(reply, FILES, asked, rows, ANSWERS, 2)


def test_answers_of_a_worker_get_the_places_that_were_asked() -> None:
    made = shard(GOOD)
    assert made["places"].tolist() == [7, 9]
    assert made["first0"].dtype == np.int32
    assert made["beside0"].tolist() == GOOD["beside0"]


@pytest.mark.parametrize(
    "change",
    [
        {"places": [2, 0]},
        {"places": [0, 3]},
        {"places": [0, 0]},
        {"places": [0]},
        {"rows": [0, 0]},
        {"skipped": []},
        {"first0": [[1, 0]]},
        {"first0": [[2, 0], [0, 1]]},
        {"first0": [[1.0, 0.0], [0.0, 1.0]]},
        {"first0": [[0, 1, 0], [0, 1, 0]]},
        {"first0": None},
        {"first1": [[-2], [0]]},
        {"first1": [[2**40], [0]]},
        {"beside0": [[0.5], [1.0]]},
        {"beside0": [["x", "y"], ["z", "w"]]},
    ],
    ids=repr,
)
def test_answers_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MachineError, match="answers are unusable"):
        shard({**GOOD, **change})


@pytest.mark.parametrize("text", ["", "[]", '{"a": NaN}', None, 3, b"{}"])
def test_what_is_no_json_object_is_no_reply(text: Any) -> None:
    with pytest.raises(MachineError, match="a worker's reply is no"):
        replies.parse(text)


def test_an_introduction_that_lacks_a_field_is_no_worker() -> None:
    with pytest.raises(MachineError, match="'version' is a required property"):
        replies.require("introduce", {})


@pytest.mark.parametrize("field", ["latency_ms", "accuracy", "command", "artefact"])
def test_a_measurement_that_was_not_asked_for_is_refused(field: str, stored: Path) -> None:
    bundle = open_bundle(stored)
    report: Any = json.loads(json.dumps(make_report()))
    row = {**report["results"][0], "artefact": "openvino/cmt_tiny.int8.xml", "accuracy": None}
    row["reasons"] = {**row["reasons"], "accuracy": "not measured"}
    entry: Any = {
        "machine": "box",
        "measured": report["created"],
        "command": "cmt-fleet bundle",
        "environment": report["environment"],
        "results": [row],
    }
    assert replies.entry_of_reply(bundle, entry, "box", "cmt-fleet bundle") == entry
    bad = {
        "latency_ms": {"latency_ms": {"p50": "fast"}},
        "accuracy": {"accuracy": report["results"][0]["accuracy"]},
        "artefact": {"artefact": "elsewhere.xml"},
        "command": {},
    }[field]
    command = "another" if field == "command" else "cmt-fleet bundle"
    with pytest.raises(MachineError, match="what box measured is unusable"):
        replies.entry_of_reply(bundle, {**entry, "results": [{**row, **bad}]}, "box", command)
