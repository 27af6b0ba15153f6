"""Timing in worker processes: alternate, clean up, and say what went wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from cmt.errors import MachineError
from cmt.measure.latency import MOST_ROUNDS, ROUNDS, measure_alternately
from cmt.measure.worker import burst

BATCH = np.ones((1, 3, 8, 8), np.float32)


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, Path]:
    """`short` adds once, `long` two thousand times."""
    paths = {}
    for name, count in (("short", 1), ("long", 2000)):
        shape = list(BATCH.shape)
        names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
        nodes = [helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names)]
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        )
        opset = helper.make_opsetid("", 20)
        paths[name] = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), paths[name])
    return paths


def test_the_slower_graph_is_measured_as_slower(graphs: dict[str, Path]) -> None:
    files = {name: ("onnxruntime", path) for name, path in graphs.items()}
    rounds: list[int] = []
    timings = measure_alternately(files, BATCH, 1, 0.2, rounds.append)
    assert sum(rounds) == MOST_ROUNDS
    assert len({len(timing.rounds) for timing in timings.values()}) == 1
    for timing in timings.values():
        assert ROUNDS <= len(timing.rounds) <= MOST_ROUNDS
        assert len(timing.usages) == len(timing.disturbed) == len(timing.rounds)
        assert all(len(one) >= 3 for one in timing.rounds)
        assert timing.load > 0
        assert timing.first > 0
        assert timing.peak_rss_mb is None or timing.peak_rss_mb > 10
    assert timings["long"].latency["p50"] > 3 * timings["short"].latency["p50"]


def test_several_callers_are_the_same_threads_in_every_burst() -> None:
    names = set()

    def runner(_: object) -> list[np.ndarray]:
        names.add(threading.current_thread().name)
        return []

    for _ in range(3):
        assert len(burst(runner, np.zeros(1), 1e-3, callers=2)) >= 6
    assert len(names) <= 2
    assert threading.current_thread().name not in names


def test_a_users_own_module_of_the_same_name_is_not_imported(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cmt.py").write_text("raise RuntimeError('not yours')")
    monkeypatch.chdir(tmp_path)
    files = {"short": ("onnxruntime", graphs["short"])}
    assert measure_alternately(files, BATCH, 1, 0.01, lambda _: None)["short"].rounds


def test_a_file_that_cannot_be_loaded_is_named_with_the_cause(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    files = {"short": ("onnxruntime", graphs["short"]), "broken": ("onnxruntime", broken)}
    with pytest.raises(MachineError, match=r"broken\.onnx"):
        measure_alternately(files, BATCH, 1, 0.01, lambda _: None)


def test_a_worker_that_the_system_kills_is_named(graphs: dict[str, Path]) -> None:
    def kill(_: int) -> None:
        for child in psutil.Process().children():
            if "cmt.measure.worker" in child.cmdline():
                child.kill()

    files = {"short": ("onnxruntime", graphs["short"])}
    with pytest.raises(MachineError, match=r"timing short\.onnx stopped with status -9"):
        measure_alternately(files, BATCH, 1, 0.05, kill)


@pytest.mark.skipif(os.name == "nt", reason="a Jetson runs Linux")
def test_a_jetsons_power_is_read_while_each_file_runs(
    graphs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\nwhile sleep 0.01; do echo VDD_IN 4890mW/4712mW; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    files = {name: ("onnxruntime", graphs[name]) for name in graphs}
    timings = measure_alternately(files, BATCH, 1, 1.0, lambda _: None)
    assert all(set(t.power_mw["VDD_IN"]) == {4890} for t in timings.values())


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps files that are open")
def test_a_killed_process_leaves_no_temporary_file_and_no_worker(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = f"""if True:
        import os, signal
        from pathlib import Path
        import numpy as np
        import psutil
        from cmt.measure.latency import measure_alternately

        def die(_):
            print(psutil.Process().children()[0].pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        batch = np.ones({BATCH.shape}, np.float32)
        files = {{"short": ("onnxruntime", Path({str(graphs["short"])!r}))}}
        measure_alternately(files, batch, 1, 0.05, die)
    """
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert list(temporary.iterdir()) == []
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(process.stdout)).wait(10)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_worker_outlives_an_interruption(graphs: dict[str, Path]) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    files = {name: ("onnxruntime", path) for name, path in graphs.items()}
    with pytest.raises(KeyboardInterrupt):
        measure_alternately(files, BATCH, 1, 0.05, interrupt)
    children = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/stat")
        if f" {os.getpid()} " in path.read_text().rsplit(")", 1)[1][:20]
    ]
    commands = [(Path("/proc") / pid / "cmdline").read_bytes() for pid in children]
    assert not [command for command in commands if b"cmt.measure.worker" in command]
