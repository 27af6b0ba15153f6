"""Deterministic weights for a checkpoint layout, so that two implementations can be compared.

A layout file is JSON: {"keys": {state-dict key: shape}, ...}. `fill(layout)` returns a state
dict of float32 tensors (int64 zeros for `num_batches_tracked`) whose values depend on each
key's name and shape alone. `image(size, batch)` returns the matching input batch.
"""

import math
import zlib

import numpy as np
import torch


def _values(key: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "running_mean" or leaf == "bias":
        return rng.standard_normal(shape) * 0.1
    if leaf == "weight" and len(shape) == 1:  # BatchNorm or LayerNorm scale
        return rng.uniform(0.5, 1.5, shape)
    if leaf == "weight":  # convolution or linear
        return rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return rng.standard_normal(shape) * 0.5  # position-bias tables


def fill(layout: dict) -> dict[str, torch.Tensor]:
    state = {}
    for key, shape in layout["keys"].items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        else:
            state[key] = torch.from_numpy(_values(key, shape).astype(np.float32)).reshape(shape)
    return state


def image(size: int, batch: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(size)
    return torch.from_numpy(rng.standard_normal((batch, 3, size, size)).astype(np.float32))
