"""A bundle that is to be trusted is opened only if its maker's key signed it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from new_report import replace_report
from no_files import put_no_file

from cmt.bundle.reader import open_bundle
from cmt.bundle.signature import SIGNATURE, SIGNED, check, read_private_key, sign
from cmt.bundle.writer import write_manifest
from cmt.commands import main
from cmt.errors import InputError
from cmt.export.assembly import keep_exported
from cmt.export.pipeline import Bundle
from cmt.report.comparison import Trust, machine_names, merge, read_source
from cmt.report.document import report_of

RUN = "ab" * 32


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
def signed(stored: Path, tmp_path: Path, public: Path) -> Path:
    """As an export signs it, with the report that it wrote."""
    manifest = json.loads((stored / "manifest.json").read_text())
    manifest |= {"exported": keep_exported(stored), "run": RUN}
    write_manifest(stored, manifest)
    sign(stored, manifest, read_private_key(tmp_path / "maker.pem"))
    return stored


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
        lambda m: m["golden"].update(max_grey_levels=16),
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
    with pytest.raises(InputError, match=r"is not signed \(it has no manifest.json.sig\): get it"):
        check(open_bundle(signed), public)


@pytest.mark.parametrize("kind", ["missing", "text", "public", "rsa", "curve", "encrypted"])
def test_what_is_no_key_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    if kind == "text":
        path.write_text("secret")
    elif kind == "public":
        path = write_key(tmp_path, "key")[1]
    elif kind == "rsa":
        write_key(tmp_path, "key", rsa.generate_private_key(65537, 1024))
    elif kind == "curve":  # which OpenSSF's format has not
        write_key(tmp_path, "key", ec.generate_private_key(ec.SECP256K1()))
    elif kind == "encrypted":
        write_key(tmp_path, "key", password=b"x")
    with pytest.raises(InputError, match=r"is no private Ed25519 or elliptic key.*openssl genpkey"):
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


@pytest.mark.parametrize("early", [True, False])
def test_what_is_signed_are_stored_bytes_and_they_say_what_the_manifest_says(
    signed: Path, public: Path, early: bool
) -> None:
    stored = (signed / SIGNED).read_bytes()
    if early:
        (signed / SIGNED).unlink()
    assert check(open_bundle(signed), public).trusted
    assert not open_bundle(signed).trusted
    for content in (stored + b" ", stored[:-1], b"", b"{}", b"[1]", stored.replace(b"red", b"rad")):
        (signed / SIGNED).write_bytes(content)
        with pytest.raises(InputError, match="is not signed with the key"):
            check(open_bundle(signed), public)


@pytest.mark.parametrize(
    "content", [b"[1]", b'{"schema":1}', b'{"a":1,"a":1}', b"\xff", b'"text"', b"null"]
)
def test_signed_bytes_of_another_kind_are_refused(
    signed: Path, public: Path, tmp_path: Path, content: bytes
) -> None:
    key = read_private_key(tmp_path / "maker.pem")
    (signed / SIGNED).write_bytes(content)
    (signed / SIGNATURE).write_bytes(base64.b64encode(key.sign(content)))
    with pytest.raises(InputError, match="is not signed with the key"):
        check(open_bundle(signed), public)


def test_signed_bytes_are_believed_however_they_are_laid_out(
    signed: Path, public: Path, tmp_path: Path
) -> None:
    content = json.dumps(json.loads((signed / SIGNED).read_bytes()), indent=3).encode()
    (signed / SIGNED).write_bytes(content)
    key = read_private_key(tmp_path / "maker.pem")
    (signed / SIGNATURE).write_bytes(base64.b64encode(key.sign(content)))
    assert check(open_bundle(signed), public).trusted


@pytest.mark.parametrize("name", [SIGNATURE, SIGNED])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "link to nothing"])
def test_a_signature_that_is_no_file_is_refused(
    signed: Path, public: Path, name: str, kind: str
) -> None:
    put_no_file(signed / name, kind)
    with pytest.raises(InputError, match="is not signed"):
        check(open_bundle(signed), public)


def forge(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another report, with all hashes made anew."""
    opened = open_bundle(bundle)
    report = report_of(opened)
    change(report)
    replace_report(opened, report)


def with_drop(drop: float) -> Callable[[dict[str, Any]], object]:
    def change(report: dict[str, Any]) -> None:
        for row in report["results"]:
            row["accuracy"] |= {"drop_pp": drop, "drop_ci95": [drop, drop]}

    return change


def add_machine(report: dict[str, Any]) -> None:
    rows = [{**row, "accuracy": None} for row in report["results"]]
    for row in rows:
        row["reasons"] = {**row["reasons"], "accuracy": "no"}
    entry = {"measured": report["created"], "command": "", "results": rows}
    report["machines"] = [{"machine": "fast", "environment": report["environment"], **entry}]


def signed_drops(bundle: Path, public: Path) -> list[float]:
    source = read_source(str(bundle), Trust(public))
    return [row["accuracy"]["drop_pp"] for row in source.report["results"]]


def test_a_forged_report_decides_nothing_where_the_signer_is_trusted(
    signed: Path, public: Path
) -> None:
    drops = signed_drops(signed, public)
    forge(signed, with_drop(-9.9))
    assert check(open_bundle(signed), public).trusted  # cmt-bench may add to that report
    assert read_source(str(signed)).report["results"][0]["accuracy"]["drop_pp"] == -9.9
    assert signed_drops(signed, public) == drops != [-9.9] * len(drops)


def test_rows_that_nobody_signed_are_left_out_and_said(signed: Path, public: Path) -> None:
    forge(signed, add_machine)
    source = read_source(str(signed), Trust(public))
    merged = merge([source])
    assert {row["machine"] for row in merged["rows"]} == {source.machine}
    assert "measured on fast is not signed: left out" in merged["warnings"][0]
    assert "fast" in machine_names(merge([read_source(str(signed))]))


def put_exported(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "report.exported.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))


@pytest.mark.parametrize("reseal", [True, False])
def test_a_forged_copy_of_the_exported_report_is_refused(
    signed: Path, public: Path, rewrite: Callable[..., None], reseal: bool
) -> None:
    put_exported(signed, with_drop(-9.9))
    if reseal:
        rewrite(signed)
    with pytest.raises(InputError, match=r"not signed|is not the file"):
        signed_drops(signed, public)


def test_trust_needs_a_whole_bundle_whose_report_is_signed(
    signed: Path, public: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="give that folder"):
        read_source(str(signed / "report.json"), Trust(public))
    (tmp_path / "other").mkdir()
    shutil.copy(signed / "report.json", tmp_path / "other")
    with pytest.raises(InputError, match="no bundle"):
        read_source(str(tmp_path / "other"), Trust(public))
    (signed / "golden" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="photo"):
        read_source(str(signed), Trust(public))


def test_a_signature_of_before_says_that_it_covers_no_report(
    stored: Path, tmp_path: Path, public: Path
) -> None:
    manifest = json.loads((stored / "manifest.json").read_text())
    sign(stored, manifest, read_private_key(tmp_path / "maker.pem"))
    (stored / SIGNED).unlink()
    with pytest.raises(InputError, match="does not cover its report"):
        read_source(str(stored), Trust(public))


def test_an_older_bundle_of_the_same_signer_is_told(signed: Path, public: Path) -> None:
    read_source(str(signed), Trust(public, [RUN]))
    read_source(str(signed), Trust(public, ["cd" * 32, RUN]))
    with pytest.raises(InputError, match=rf"of the run {RUN}, not of cdcd"):
        read_source(str(signed), Trust(public, ["cd" * 32]))


@pytest.mark.parametrize("command", ["cmt-report", "cmt-bench"])
def test_a_run_is_expected_of_what_is_trusted_alone(
    signed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [command, str(signed), "--expect-run", RUN])
    with pytest.raises(SystemExit) as stop:
        main.run(command)
    assert stop.value.code == 2
    assert "add --trust" in capsys.readouterr().err


def test_the_gate_of_a_release_takes_signed_figures(
    signed: Path, public: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (worst,) = {max(signed_drops(signed, public))}
    forge(signed, with_drop(-90.0))
    require = f"drop<={worst - 50}"
    codes = []
    for trust in ([], ["--trust", str(public)]):
        command = ["cmt-report", str(signed), "--require", require, *trust]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main.run("cmt-report")
        codes.append(stop.value.code)
    assert codes == [0, 1], capsys.readouterr().err
