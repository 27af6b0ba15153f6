"""Every name of TensorRT and CUDA that is used exists in the versions that people have.

`tests/support/tensorrt_api.py` read the names and signatures out of the bindings themselves.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from tensorrt_api import NAMES, RECORD, read
from tensorrt_double import CUDA_VERSIONS, VERSIONS, known_names

ROOT = Path(__file__).parents[2]
SEAM = tuple(sorted((ROOT / "targets" / "tensorrt").glob("*.py")))
CLASSES = {
    "builder": "Builder",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "runtime": "Runtime",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
}
"""What the seam calls its objects."""
OLDEST = "tensorrt 8.6.1"
RTX_ALONE = {
    "ComputeCapability.__members__",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}


def used_names() -> set[str]:
    """`Class.member` of TensorRT, and the CUDA runtime's functions, as the seam has them."""
    used = set()
    for path in SEAM:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            receiver = node.value
            name = getattr(receiver, "attr", getattr(receiver, "id", ""))
            if name in CLASSES:
                used.add(f"{CLASSES[name]}.{node.attr}")
            text = ast.unparse(node)
            if text.startswith("trt.") and not text.startswith("trt.__"):
                used.add(text.removeprefix("trt."))
        used |= set(re.findall(r"\bcuda[A-Z]\w+", path.read_text()))
    return used


def test_every_name_in_use_was_looked_up() -> None:
    looked_up = set(" ".join(NAMES.values()).split())
    parts = {part for name in looked_up for part in (name, name.split(".")[0], name.split(".")[-1])}
    parts |= {"ILogger.Severity"}
    assert {name for name in used_names() if name not in parts} == set()


def test_no_name_is_looked_up_in_vain() -> None:
    source = "".join(path.read_text() for path in SEAM)
    words = set(re.findall(r"\w+", source))
    looked_up = set(" ".join(NAMES.values()).split())
    assert {name for name in looked_up if name.split(".")[-1] not in words} == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_all_names_are_in_every_tensorrt_that_builds(version: str) -> None:
    assert set(NAMES["tensorrt"].split()) - set(known_names(version)) == RTX_ALONE


def test_tensorrt_rtx_has_all_names() -> None:
    versions = {
        v
        for s in json.loads(RECORD.read_text()).values()
        for v in ", ".join(s.values()).split(", ")
    }
    (rtx,) = (version for version in versions if version.startswith("tensorrt_rtx"))
    assert set(NAMES["tensorrt"].split()) <= set(known_names(rtx))


def test_tensorrt_8_can_run_engines_but_has_no_strong_typing() -> None:
    running = re.compile(r"(Runtime|ICudaEngine|IExecutionContext|TensorIOMode|DataType|ILogger)\.")
    names = {name for name in NAMES["tensorrt"].split() if running.match(name)}
    assert names <= set(known_names(OLDEST))
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" not in known_names(OLDEST)


@pytest.mark.parametrize("version", CUDA_VERSIONS)
def test_all_names_are_in_every_cuda(version: str) -> None:
    assert set(NAMES["cuda"].split()) == set(known_names(version))


def test_the_record_says_what_the_installed_tensorrt_rtx_says() -> None:
    pytest.importorskip("tensorrt_rtx")
    found = read(None)
    recorded = known_names(found["version"])
    if not recorded:
        pytest.skip(f"the record is of another version than {found['version']}")
    assert found["names"] == recorded
