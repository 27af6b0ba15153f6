"""Runs that are really killed, with SIGINT and SIGKILL, at every stage: --resume goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cmt.bundle import placing
from cmt.bundle.reader import open_bundle
from cmt.errors import InputError

StatusOf = Callable[..., int]

SPEED = ("latency_ms", "timing", "throughput_ips", "peak_rss_mb")
SPEED_UPS = ("speedup_vs_baseline", "speedup_vs_fp32_graph")


def files_of(bundle: Path) -> dict[str, str]:
    """sha256 by path of everything but the report, which holds times."""
    manifest = open_bundle(bundle).manifest
    entries = [*manifest["artefacts"], *(e for a in manifest["artefacts"] for e in golden(a))]
    return {entry["path"]: entry["sha256"] for entry in entries}


def golden(artefact: dict[str, Any]) -> list[dict[str, Any]]:
    return artefact["golden"]["outputs"] if "golden" in artefact else []


def test_a_run_killed_at_every_stage_ends_with_the_report_of_one_that_was_not(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert status_of(arguments("whole", "--int8"), log) == 0
    stages = log.read_text().split()

    log.unlink()
    bundle, resumed = tmp_path / "killed", arguments("killed", "--int8", "--resume")
    moments = [(signal.SIGKILL, "within"), (signal.SIGINT, "within"), (signal.SIGKILL, "after")]
    for i, stage in enumerate([*stages, "bundle"]):
        number, moment = moments[i % 3 if stage in stages else 0]
        status = status_of(resumed, log, stage, moment, number)
        assert status == (130 if number == signal.SIGINT else -number)
        assert not bundle.exists()
    assert status_of(resumed, log, "bundle", "after", signal.SIGKILL) == -signal.SIGKILL
    made = log.read_text().split()
    for i, stage in enumerate(stages):
        assert made.count(stage) == (1 if moments[i % 3][1] == "after" else 2)

    finished = (bundle / "report.json").read_bytes()
    assert status_of(resumed, log) == 0, "killed when all was done but the tidying up"
    assert (bundle / "report.json").read_bytes() == finished
    assert log.read_text().split() == made
    assert [path.name for path in tmp_path.glob(".*")] == []

    assert files_of(bundle) == files_of(tmp_path / "whole")
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("killed", "whole")]
    for report in reports:
        for row in (report, report["baseline"], *report["results"]):
            for measured in ("created", *SPEED, *SPEED_UPS):
                row.pop(measured, None)
                row.get("reasons", {}).pop(measured, None)
    commands = [report.pop("command").split() for report in reports]
    assert commands[0] == [a if a != str(tmp_path / "whole") else str(bundle) for a in commands[1]]
    assert reports[0] == reports[1]


def test_work_that_targets_and_precisions_share_is_done_once(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert status_of(arguments("b", "--target", "openvino", "--fp16", "--int8"), log) == 0
    stages = log.read_text().split()
    assert len(stages) == len(set(stages))
    assert {"build/openvino/fp32", "build/openvino/fp16", "build/openvino/int8"} < set(stages)


def test_fine_tuning_goes_on_after_the_last_finished_epoch(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    log, first = tmp_path / "log", "tuned/explicit-1"
    tuned = arguments("tuned", "--int8", "--qat", "2", "--resume")
    assert status_of(tuned, log, first, "after", signal.SIGKILL) == -signal.SIGKILL
    assert status_of(tuned, log) == 0
    made = log.read_text().split()
    assert (made.count(first), made.count("tuned/explicit-2")) == (1, 1)
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    tuned = report["fine_tuning"]["schemes"]["explicit"]
    assert report["fine_tuning"]["epochs"] == len(tuned["training"]) == 2
    assert tuned["held_out"][tuned["chosen"]] == min(tuned["held_out"])
    # INT8 comes from the fine-tuned network, float files from the one that was given.
    stages = [row["stage"] for row in report["parity"]]
    assert stages.index("simplified") < stages.index("equalised") < stages.index("qdq")


@pytest.mark.parametrize("changed", ["image", "option"])
def test_a_changed_input_is_not_answered_from_the_stages(
    status_of: StatusOf,
    arguments: Callable[..., list[str]],
    photos: Path,
    tmp_path: Path,
    changed: str,
) -> None:
    copy = shutil.copytree(photos, tmp_path / "photos")
    options = [str(copy) if a == str(photos) else a for a in arguments("bundle")]
    log = tmp_path / "log"
    status_of(options, log, "torch.outputs", "after", signal.SIGKILL)
    if changed == "image":
        image = copy / "red" / "1.png"
        times = image.stat().st_atime_ns, image.stat().st_mtime_ns
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 1  # of the same size and age
        image.write_bytes(content)
        os.utime(image, ns=times)
        again = {"images/validation-0000", "images/validation", "torch.outputs"}
    else:
        options += ["--threads", "2"]
        again = {"torch.outputs"}
    before = log.read_text().split()
    assert status_of([*options, "--resume"], log, "torch.outputs", "after", signal.SIGKILL) == -9
    assert set(log.read_text().split()[len(before) :]) == again


@pytest.mark.parametrize("changed", ["weights", "image"])
def test_a_bundle_finished_from_other_inputs_is_no_result_of_a_resumed_run(
    status_of: StatusOf,
    arguments: Callable[..., list[str]],
    tiny_weights: Path,
    photos: Path,
    tmp_path: Path,
    changed: str,
) -> None:
    log, bundle = tmp_path / "log", tmp_path / "b"
    weights = Path(shutil.copy(tiny_weights, tmp_path))
    images = shutil.copytree(photos, tmp_path / "photos")
    copies = {str(tiny_weights): str(weights), str(photos): str(images)}
    options = [copies.get(a, a) for a in arguments("b")]
    assert status_of(options, log, "bundle", "after", signal.SIGKILL) == -signal.SIGKILL
    old = (bundle / "report.json").read_bytes()
    if changed == "weights":
        state, metadata = load_file(weights), {"labels": json.dumps(["blue", "red"])}
        save_file({k: v * 1.01 for k, v in state.items()}, weights, metadata)
    else:
        (images / "red" / "1.png").write_bytes((images / "red" / "2.png").read_bytes())
    assert status_of([*options, "--resume"], log) == 2, "it exists, and is of something else"
    assert (bundle / "report.json").read_bytes() == old
    assert status_of([*options, "--resume", "--force"], log) == 0
    assert (bundle / "report.json").read_bytes() != old


def test_a_run_that_replaced_a_bundle_is_finished_whether_or_not_told_so_again(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    log, forced = tmp_path / "log", arguments("b", "--force")
    assert status_of(forced, log, "bundle", "after", signal.SIGKILL) == -signal.SIGKILL
    finished, made = (tmp_path / "b" / "report.json").read_bytes(), log.read_text()
    assert status_of(arguments("b", "--resume"), log) == 0
    assert status_of(arguments("b", "--resume"), log) == 0, "as often as one likes"
    assert (tmp_path / "b" / "report.json").read_bytes() == finished
    assert log.read_text() == made
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_second_run_of_one_bundle_is_refused_and_leaves_the_first_its_stages(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    place, log = tmp_path / "new" / "bundle", tmp_path / "log"
    stage = placing.workspace_folder(place) / "stage"
    with placing.locked(place):
        stage.mkdir(parents=True)
        assert status_of(arguments("new/bundle"), log) == 2
        assert stage.is_dir()
        with pytest.raises(InputError, match=f"another run is writing {place}"):
            placing.locked(place).__enter__()
    assert [path.name for path in place.parent.iterdir()] == [".bundle.partial"]


def test_a_killed_run_keeps_no_lock_and_a_refused_one_no_folders(
    status_of: StatusOf, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    killed = status_of(arguments("new/b"), log, "reference", "after", signal.SIGKILL)
    assert killed == -signal.SIGKILL
    with placing.locked(tmp_path / "new" / "b"):
        pass
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".b.partial"]
    with placing.locked(tmp_path / "other" / "folder" / "b"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_bundle_that_is_being_replaced_is_never_lost(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "b", placing.workspace_folder(tmp_path / "b") / "bundle"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(text)
    renames = []
    rename = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            placing.place(new, old)
    assert not old.exists()
    placing.recover(old)
    assert (old / "manifest.json").read_text() == "old"
    placing.place(new, old)
    assert (old / "manifest.json").read_text() == "new"

    leftover = placing.workspace_folder(old) / "replaced" / "model"  # killed while removing it
    leftover.mkdir(parents=True)
    new.mkdir()
    (new / "manifest.json").write_text("newer")
    placing.place(new, old)
    assert (old / "manifest.json").read_text() == "newer"
    assert not leftover.exists()
