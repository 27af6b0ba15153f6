"""What INT8 is shown that it finds hard: the same network, the images that their name says."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import commands
from PIL import Image

from benchmarks.hard_cases import main
from cmt.checkpoints import load_model, named_weights
from cmt.network import CMT
from cmt.variants import VARIANTS


def documented(subcommand: str, **options: object) -> list[str]:
    """The words of the documented command, with other values of some options."""
    (command,) = commands(f"python benchmarks/hard_cases.py {subcommand} ")
    words = shlex.split(command)[2:]
    for option, value in options.items():
        words[words.index(f"--{option}") + 1] = str(value)
    return words


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["hard_cases.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


FFN = [("norm2", "ffn.expand"), ("ffn.depthwise_norm", "ffn.project")]
ATTENTION = [("attention.v", "attention.proj")]
EVERY_BLOCK = [
    f"stages.{stage}.blocks.{block}"
    for stage, depth in enumerate(VARIANTS["ti"].depths)
    for block in range(depth)
]


def channels_far_above(given: CMT, hostile: CMT) -> dict[str, list[int]]:
    """Output channels whose weights have grown 100 times, by layer."""
    found = {}
    for name, old in given.named_parameters():
        ratios = hostile.get_parameter(name).detach() / old.detach()
        grown = ratios.reshape(len(old), -1).nanmedian(1).values > 99
        if name.endswith(".weight") and grown.any():
            found[name.removesuffix(".weight")] = torch.nonzero(grown).flatten().tolist()
    return found


@pytest.mark.parametrize(
    ("option", "places"),
    [
        (["--block", 1], {"stages.0.blocks.1": FFN, "stages.3.blocks.1": ATTENTION}),
        (["--everywhere"], dict.fromkeys(EVERY_BLOCK, FFN + ATTENTION)),
    ],
)
def test_the_network_is_the_same_with_some_channels_far_above(
    option: list[object],
    places: dict[str, list[tuple[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "hostile.safetensors"
    words = documented("network", weights=named_weights("demo", "ti"), out=out)
    assert run(monkeypatch, *words, *option) == 0
    given, hostile = load_model("ti", named_weights("demo", "ti")), load_model("ti", out)
    assert hostile.metadata == given.metadata
    images = torch.randn(2, 3, *given.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = given(images)
        assert float((hostile(images) - before).abs().max()) < 1e-5 * float(before.abs().max())
    most_read = {
        f"{block}.{layer}": [int(weights.flatten(1).norm(dim=0).argmax())]
        for block, pairs in places.items()
        for layer, reader in pairs
        for weights in [given.get_submodule(f"{block}.{reader}").get_parameter("weight")]
    }
    assert channels_far_above(given, hostile) == most_read


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["network", "--block", "2"], "ti have no block 2: give a lower one"),
        (["network", "--factor", "nan"], "--factor nan changes the logits by nan: give another"),
        (["network", "--variant", "s"], "holds CMT-ti weights: use --variant ti"),
        (["images", "--kind", "grey", "--photos", "nowhere"], "no image folder at nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if words[0] == "network":
        words = [*words, "--weights", str(named_weights("demo", "ti"))]
    assert run(monkeypatch, *words, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "out").exists()


def expected(kind: str, pixels: np.ndarray) -> np.ndarray:
    if kind == "wrong-mean":
        return np.clip(pixels.astype(float) - [123.675, 116.28, 103.53], 0, 255)
    if kind == "grey":
        return np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    return np.full(pixels.shape, pixels.mean()) if kind == "even-grey" else pixels


@pytest.mark.parametrize("kind", ["as-they-are", "grey", "wrong-mean", "even-grey"])
def test_images_of_all_classes_are_what_they_are_called(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, photos, out = np.random.default_rng(0), tmp_path / "photos", tmp_path / "out"
    for name in ("a/1", "a/2", "a/3", "b/1"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(photos / f"{name}.png")
    words = [*documented("images", photos=photos, kind=kind, out=out), "--count", 3]
    assert run(monkeypatch, *words) == 0
    written = sorted(out.rglob("*.png"))
    assert [path.parent.name for path in written] == ["a", "a", "b"]
    for path in written:
        before = np.asarray(Image.open(photos / path.relative_to(out).with_suffix("")))
        np.testing.assert_allclose(np.asarray(Image.open(path)), expected(kind, before), atol=1)
    assert run(monkeypatch, *words) == 2
