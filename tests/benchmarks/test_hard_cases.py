"""What INT8 is shown that it finds hard: the same network, the images that their name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.hard_cases import SCALED, main
from cmt.checkpoints import load_model
from export.inputs import DEMO_WEIGHTS


def test_the_network_is_the_same_with_three_channels_far_above(tmp_path: Path) -> None:
    out = tmp_path / "hostile.safetensors"
    options = ["--weights", str(DEMO_WEIGHTS), "--block", "1", "--out", str(out)]
    result = CliRunner().invoke(main, ["network", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    given, hostile = load_model("ti", DEMO_WEIGHTS), load_model("ti", out)
    images = torch.randn(2, 3, *given.img_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = given(images)
        assert float((hostile(images) - before).abs().max()) < 1e-5 * float(before.abs().max())
    for layer, reader in SCALED:
        old, new = (
            m.get_submodule(layer.format(1)).get_parameter("weight") for m in (given, hostile)
        )
        scaled = [i for i in range(len(old)) if float((new[i] / old[i]).detach().median()) > 99]
        read = given.get_submodule(reader.format(1)).get_parameter("weight")
        assert scaled == [int(read.flatten(1).norm(dim=0).argmax())]


@pytest.mark.parametrize("kind", ["as-they-are", "grey", "wrong-mean", "even-grey"])
def test_images_of_all_classes_are_what_they_are_called(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a/1", "a/2", "a/3", "b/1"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    options = ["--photos", str(tmp_path / "photos"), "--kind", kind, "--count", "3"]
    CliRunner().invoke(
        main, ["images", *options, "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [
        "a/1.png",
        "a/2.png",
        "b/1.png",
    ]
    for path in written:
        pixels = np.asarray(Image.open(path)).astype(float)
        before = np.asarray(Image.open(tmp_path / "photos" / path.relative_to(tmp_path / "out")))
        coloured, flat = np.ptp(pixels, axis=2).max() > 0, np.ptp(pixels) == 0
        assert (coloured, flat) == (
            kind in ("as-they-are", "wrong-mean"),
            kind == "even-grey",
        )
        if kind == "wrong-mean":
            assert (before.mean() - pixels.mean()) > 50
        else:
            assert pixels.mean() == pytest.approx(before.mean(), abs=1)
