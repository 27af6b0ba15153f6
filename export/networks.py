"""The torch networks that graphs are exported from."""

from __future__ import annotations

import copy

import numpy as np

from cmt.calib_data.prepared import spread
from cmt.export.answers import REFERENCE_BATCH
from cmt.export.context import Context
from cmt.export.graphs import Graph
from cmt.network import CMT
from cmt.rewrite import InferenceCMT, rewrite_for_inference
from cmt.tensor_cores import fit_tensor_cores

Network = CMT | InferenceCMT


def make_network(context: Context, graph: Graph) -> Network:
    """The network of a graph before any fine-tuning; the given one only where nothing changes."""
    if graph.tensor_cores:
        return _for_tensor_cores(context, graph.equalised)
    if graph.equalised:
        return _equalised(context)
    if not graph.rewritten:
        return context.inputs.model
    rewritten = rewrite_for_inference(context.inputs.model)
    if graph.fitted:
        _fit_activations(context, rewritten)
    return rewritten


def _for_tensor_cores(context: Context, int8: bool) -> InferenceCMT:
    from cmt.quantize.recipe import RECIPES, TENSOR_CORES

    if not int8:
        return fit_tensor_cores(context.inputs.model)
    recipe = RECIPES[TENSOR_CORES]
    return fit_tensor_cores(
        _equalised(context), lambda path: recipe.is_int8([f"{path}.weight"], depthwise=False)
    )


def _equalised(context: Context) -> CMT:
    import torch

    from cmt.quantize.equalise import equalise

    network = copy.deepcopy(context.inputs.model)
    batches = context.images.setting_ranges.batches(REFERENCE_BATCH)
    equalise(network, map(torch.from_numpy, batches))
    return network


def _fit_activations(context: Context, network: InferenceCMT) -> None:
    import torch

    from cmt.quantize import activation

    images = context.images.setting_ranges
    # Not class by class: of large maps, the first images are enough.
    places = np.random.default_rng(0).permutation(spread(len(images), activation.IMAGES))
    activation.fit_activations(network, map(torch.from_numpy, images.batches(1, places)))
