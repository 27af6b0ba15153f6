"""cmt-fleet on real schedulers and workers of Dask: what is measured, and who dies meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cmt
from cmt.bundle.reader import OpenBundle, open_bundle
from cmt.errors import InputError, MachineError
from cmt.fleet import crew as crew_module
from cmt.fleet.cluster import IMAGES, connected
from cmt.fleet.copies import copy_folder, identity
from cmt.fleet.crew import Crew
from cmt.fleet.dispatch import Failed, Job, dispatch
from cmt.fleet.tags import tags_of
from cmt.measure import on_device
from cmt.measure.bench import Sweep, asked_files
from cmt.measure.device_rows import Images, measure_accuracy
from cmt.measure.on_device import Elsewhere, open_images
from cmt.measure.progress import ProgressBars
from cmt.measure.tune import Search, tuned_for_here
from cmt.report.document import report_of

NO_BARS = ProgressBars(False).task
QUICK = ("--seconds", "0.1")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """Five shards of 21 photos, and looks in quick succession."""
    monkeypatch.setattr(on_device, "SHARD", 5)
    monkeypatch.setattr(crew_module, "LOOK_SECONDS", 0.05)


def accuracies(rows: list[Any]) -> list[Any]:
    return [(row["artefact"], row["accuracy"], row["unknown_images"]) for row in rows]


def test_two_workers_answer_what_one_process_answers_and_get_each_file_once(
    stored: Path, images: Path, start: Callable[..., Any], fleet: Callable[..., Any]
) -> None:
    bundle = open_bundle(stored)
    alone = measure_accuracy(
        bundle,
        Images(open_images(str(images), bundle.preprocessing.image_range)),
        asked_files(bundle, Sweep()),
        1,
        NO_BARS,
    )
    with start(2) as cluster:
        command = (stored, "--val-data", images, *QUICK)
        status, _, error = fleet(*command, at=cluster)
        assert status == 0, error
        (entry,) = report_of(open_bundle(stored))["machines"]
        assert accuracies(entry["results"]) == [
            (name.split(" ")[0], row["accuracy"], row["unknown_images"])
            for name, row in alone.rows.items()
        ]
        assert entry["images"] == alone.images
        assert "broken.jpg" in error
        assert all(row["latency_ms"]["p50"] > 0 for row in entry["results"])

        folder = copy_folder(identity(bundle))
        sent = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        assert folder / "openvino" / "cmt_tiny.int8.bin" in sent
        status, output, error = fleet(stored, "--verify", at=cluster)
        assert status == 0, error
        assert "preprocessing: differs by 0" in output
        assert {path: path.stat().st_mtime_ns for path in sent} == sent
        assert report_of(open_bundle(stored))["machines"] == [entry]


def test_a_damaged_copy_is_sent_again(
    stored: Path, start: Callable[..., Any], fleet: Callable[..., Any]
) -> None:
    with start(1) as cluster:
        assert fleet(stored, "--verify", at=cluster)[0] == 0
        file = copy_folder(identity(open_bundle(stored))) / "golden" / "pixels.npy"
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        assert fleet(stored, "--verify", at=cluster)[0] == 0
        assert file.read_bytes() == content


def test_images_that_a_worker_lacks_are_named_and_speed_is_measured_all_the_same(
    stored: Path,
    photos: Path,
    tmp_path: Path,
    start: Callable[..., Any],
    fleet: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = shutil.copytree(photos, tmp_path / "theirs")
    shutil.copy(theirs / "red" / "1.png", theirs / "blue" / "0.png")
    monkeypatch.setenv(IMAGES, str(theirs))
    with start(1) as cluster:
        status, _, error = fleet(stored, "--val-data", photos, *QUICK, at=cluster)
    assert status == 0, error
    assert "1 are not in CMT_IMAGES=" in error
    assert "blue/0.png" in error
    (entry,) = report_of(open_bundle(stored))["machines"]
    assert all(row["latency_ms"] for row in entry["results"])
    assert {row["reasons"]["accuracy"] for row in entry["results"]} == {"no worker is left for it"}


@pytest.mark.parametrize(
    ("tag", "said"),
    [("jetson", "none has the tags jetson"), ("cpu", None)],
)
def test_workers_are_chosen_by_tags_that_they_find_themselves(
    tag: str, said: str | None, stored: Path, start: Callable[..., Any], fleet: Callable[..., Any]
) -> None:
    with start(1) as cluster:
        status, _, error = fleet(stored, "--verify", "--tag", tag, at=cluster)
    assert (status, len(error.splitlines())) == ((0, 0) if said is None else (2, 1))
    assert said is None or said in error


def test_a_worker_that_cannot_time_alone_or_has_another_version_is_not_used(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(1, resources={}) as cluster, connected(cluster.scheduler_address, None, None) as c:
        with pytest.raises(InputError, match="start it with --resources TIMING=1"):
            Crew(c).require(5)
        monkeypatch.setattr(cmt, "__version__", "9.9")
        with pytest.raises(InputError, match="TIMING"):  # told by workers of this process alike
            Crew(c).require(5)


def test_a_target_that_no_worker_can_serve_is_named_at_once(start: Callable[..., Any]) -> None:
    with start(1) as cluster, connected(cluster.scheduler_address, None, None) as client:
        crew = Crew(client)
        crew.require(5)
        crew.require_targets(["openvino", "abacus"])
        assert crew.remarks == ["no worker can run abacus files: not part of this version"]
        with pytest.raises(InputError, match="no worker can run abacus files"):
            crew.require_targets(["abacus"])


def job(name: str, /, **request: Any) -> Job:
    return Job(name, "answer", request, lambda member: True)


def die_or_answer(task: str, request: str) -> str:
    """What `perform` does, of shards some of which end their worker."""
    from distributed import get_worker

    worker = get_worker()
    if json.loads(request).get("deadly"):
        worker.loop.add_callback(worker.close, executor_wait=False, nanny=False, reason="a test")
        time.sleep(1)
    return json.dumps({"name": json.loads(request)["name"]})


def test_a_shard_that_kills_three_workers_is_left_out_and_the_others_are_answered(
    start: Callable[..., Any],
) -> None:
    jobs = [job(f"{i}", name=i, deadly=i == 1) for i in range(8)]
    with start(4) as cluster, connected(cluster.scheduler_address, None, None) as client:
        found = {one.name: reply for one, reply in dispatch(Crew(client), jobs, die_or_answer)}
        left = len(client.nthreads())
    failed = found.pop("1")
    assert isinstance(failed, Failed)
    assert failed.reason.count("died of it") == 3
    assert found == {f"{i}": {"name": i} for i in range(8) if i != 1}
    assert left == 1


def sleep(task: str, request: str) -> str:
    time.sleep(0.2)
    return "{}"


def test_a_scheduler_that_dies_ends_the_run_and_says_so(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt.fleet.cluster.CONNECTING_SECONDS", 1.0)
    with start(1) as cluster, connected(cluster.scheduler_address, None, None) as client:
        found = dispatch(Crew(client), [job(f"{i}", name=i) for i in range(50)], sleep)
        next(found)
        cluster.close()
        with pytest.raises(MachineError, match="the scheduler"):
            list(found)


def answering_here(stored: Path, photos: Path) -> Any:
    """A bundle, images, its files, and this process as what answers."""
    bundle = open_bundle(stored)
    source = open_images(str(photos), bundle.preprocessing.image_range)
    files = asked_files(bundle, Sweep())
    here = on_device._here(bundle, source, files, 1, on_device.read_answers(bundle))
    return bundle, source, files, here


def test_a_run_that_was_stopped_asks_for_the_shards_that_it_lacks(
    stored: Path, photos: Path
) -> None:
    bundle, source, files, here = answering_here(stored, photos)
    asked: list[list[int]] = []

    def dies_after_two(pending: Any) -> Any:
        asked.append([*pending])
        for count, answered in enumerate(here(pending)):
            if count == 2 and len(asked) == 1:
                raise MachineError("the scheduler no longer answers")
            yield answered

    def run() -> Any:
        elsewhere = Elsewhere(dies_after_two, "a kind", None)
        return measure_accuracy(bundle, Images(source), files, 0, NO_BARS, elsewhere)

    with pytest.raises(MachineError):
        run()
    assert run().rows == measure_accuracy(bundle, Images(source), files, 1, NO_BARS).rows
    assert asked == [[0, 1, 2, 3, 4], [2, 3, 4]]


def test_a_shard_that_nobody_answered_is_counted_and_its_images_named(
    stored: Path, photos: Path
) -> None:
    bundle, source, files, here = answering_here(stored, photos)

    def without_first(pending: Any) -> Any:
        yield from here({number: places for number, places in pending.items() if number})

    elsewhere = Elsewhere(without_first, "a kind", None)
    judged = measure_accuracy(bundle, Images(source), files, 0, NO_BARS, elsewhere)
    assert (judged.images["images"], judged.images["skipped"]) == (15, 6)
    assert sum("nobody answered" in line for line in judged.remarks) == 5


def test_nothing_else_runs_on_a_machine_that_is_timed(start: Callable[..., Any]) -> None:
    with start(3) as cluster, connected(cluster.scheduler_address, None, None) as client:
        jobs = [job(f"{i}", alone=i % 3 == 0) for i in range(9)]
        list(dispatch(Crew(client), jobs, note_company))
    assert seen["alone"] == [1, 1, 1]
    assert len(seen["together"]) == 6


seen: dict[str, list[int]] = {"alone": [], "together": []}
inside: list[int] = []
guard = threading.Lock()


def note_company(task: str, request: str) -> str:
    from cmt.fleet.tasks import _machine

    alone = json.loads(request)["alone"]
    with _machine(alone):
        with guard:
            inside.append(1)
        time.sleep(0.05)
        with guard:
            seen["alone" if alone else "together"].append(len(inside))
            inside.pop()
    return "{}"


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({"cpu": "AMD EPYC", "cpu_flags": ["avx2"], "gpu": None}, ["cpu", "box"]),
        (
            {"cpu": "Xeon", "cpu_flags": ["avx2", "avx512_vnni"], "gpu": "L4, 550.1"},
            ["cpu", "gpu", "vnni", "box"],
        ),
        (
            {"cpu": "NVIDIA Jetson AGX Orin Developer Kit", "cpu_flags": ["asimd"], "gpu": "Orin"},
            ["cpu", "gpu", "jetson", "box"],
        ),
    ],
)
def test_tags_say_what_a_machine_is(hardware: Any, expected: list[str]) -> None:
    assert tags_of(hardware, "box") == expected


def test_tuned_settings_are_those_of_files_that_have_any_to_search(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(stored)
    monkeypatch.setattr(Search, "thorough", lambda *_: ({"NUM_STREAMS": 2}, []))
    tuned = tuned_for_here(bundle, 0.1, NO_BARS)
    found = {a["target"]: a["settings"] for a in tuned.artefacts}
    before = {a["target"]: a["settings"] for a in bundle.artefacts}
    assert found == {**before, "openvino": {"NUM_STREAMS": 2}}
    assert open_bundle(stored).manifest == bundle.manifest


def test_no_thread_count_changes_an_answer(stored: Path, photos: Path) -> None:
    bundle: OpenBundle = open_bundle(stored)
    source = open_images(str(photos), bundle.preprocessing.image_range)
    files, answers = asked_files(bundle, Sweep()), on_device.read_answers(bundle)
    shards = [
        dict(on_device._here(bundle, source, files, threads, answers)({0: np.arange(20)}))[0]
        for threads in (1, 2)
    ]
    for name, array in shards[0].items():
        np.testing.assert_array_equal(array, shards[1][name])
