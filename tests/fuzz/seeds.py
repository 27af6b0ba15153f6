"""Writes small files that the Python fuzzers start from: `seeds.py BUNDLE CORPUS`."""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
from pathlib import Path

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from example_report import make_report


def main(bundle: str, corpus: str) -> None:
    state = {
        "patch_embed_a.proj.weight": torch.ones(46, 1, 1, 1),
        "relative_pos_a": torch.ones(1, 4, 1),
        "head.weight": torch.ones(2, 1),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    metadata = {"labels": '["a", "b"]', "resize": "178", "image_size": "160", "mean": "[0, 0, 0]"}
    manifest = json.loads((Path(bundle) / "manifest.json").read_text())
    manifest["artefacts"] = [a for a in manifest["artefacts"] if "openvino" in a["built_with"]][:2]
    manifest |= {
        "environment": {"seed": 0},
        "labels": ["tench", "church"],
        "reports": manifest["reports"][:1],
    }
    manifest["licence"] = {"toolchain": "MIT", "weights": "yours", "images": "yours"}
    args = argparse.Namespace(lr=1e-3)
    whole = {"model": state, "model_ema": None, "args": args, "epoch": 3}
    files = {
        "manifest/bundle": json.dumps(manifest).encode(),
        "report/example": json.dumps(make_report()).encode(),
        "idx/labels": b"\0\0\x08\x01" + struct.pack(">I", 3) + b"\1\2\3",
        "idx/images": b"\0\0\x08\x03" + struct.pack(">III", 1, 2, 2) + b"\1\2\3\4",
        "safetensors/weights": save(state, metadata),
        "checkpoint/old": _saved(whole, False),
        "checkpoint/zip": _saved(whole, True),
        "checkpoint/bare": _saved({"a": torch.ones(2, dtype=torch.float16)}, False),
    }
    for name, content in files.items():
        path = Path(corpus) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _saved(content: object, as_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


if __name__ == "__main__":
    main(*sys.argv[1:])
