"""What an export would build, and what stands in its way, found out without writing anything."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmt.bundle.placing import check_destination
from cmt.errors import InputError
from cmt.export.graphs import GRAPHS, Candidate, chain, int8_graph
from cmt.export.images import select
from cmt.export.networks import Network
from cmt.export.options import ExportOptions
from cmt.export.pipeline import Plan, make_plan, rehearse, start
from cmt.measure.progress import ProgressBars
from cmt.network import CMT, count_macs
from cmt.quantize.recipe import RECIPES, Recipe, role_of
from cmt.targets.base import Prediction
from cmt.targets.machine import describe, has_int8_dot_products
from cmt.tensor_cores import fit_tensor_cores

IMAGES = 16
"""Enough to trace the graphs; accuracy needs them all."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the network.

    Attributes:
        path: in the network, such as `stages.0.entry.conv`.
        macs: multiply-adds for one image.
        channels: read by each group, and written.
    """

    path: str
    depthwise: bool
    macs: int
    channels: tuple[int, int]

    def is_int8(self, recipe: Recipe) -> bool:
        """Whether the recipe puts it into INT8."""
        return recipe.is_int8([f"{self.path}.weight"], self.depthwise)


def preflight(options: ExportOptions, progress: ProgressBars | None = None) -> list[str]:
    """Trace, quantise and parse what would be built, on a few images, in a folder that goes again.

    Returns lines for people. Raises InputError for whatever the export itself would refuse, an
    operator that a target lacks included, and GateError where a step breaks the network.
    """
    plan = make_plan(options)
    candidates, inputs = plan.candidates, plan.inputs
    check_destination(options.bundle, options.force or options.resume)
    with tempfile.TemporaryDirectory(prefix="cmt-dry-run-") as folder:
        context = start(_few(plan), Path(folder), progress or ProgressBars(False))
        graphs = rehearse(context, candidates)
        for candidate in candidates:
            check = candidate.target.unsupported
            problems = check(graphs[candidate.name]) if check is not None else []
            if problems:
                raise InputError(f"{candidate.name} cannot be built: {'; '.join(problems)}")
        predicted = {c: _predicted(c, graphs[c.name], options) for c in candidates}
    model = inputs.model
    total = count_macs(model, model.img_size)
    height, width = model.img_size
    batch = ":".join(map(str, options.batches or (options.batch,)))
    lines = [
        f"{model.variant.name} ({model.family.name}), {height}x{width}, batch {batch}: "
        f"{total / 1e9:.2f} G multiply-adds"
    ]
    for candidate in candidates:
        layers = weighted_layers(_network_of(candidate, model))
        lines += _describe(candidate, layers, total, options, predicted)
    warnings = [*inputs.warnings, *context.images.warnings()]
    return [*lines, *(f"warning: {warning}" for warning in warnings)]


def _few(plan: Plan) -> Plan:
    """The same on a few images, which nothing is learned from."""
    options = plan.options
    few = replace(options, calib_count=min(IMAGES, options.calib_count), qat=0, qat_data=None)
    inputs = replace(
        plan.inputs,
        tuning=None,
        validation_count=min(IMAGES, plan.inputs.validation_count or IMAGES),
    )
    return replace(plan, options=few, inputs=inputs, selections=select(inputs, few, IMAGES))


def _network_of(candidate: Candidate, model: CMT) -> Network:
    """The network whose layers a candidate's graph has."""
    *_, made = chain(candidate.graph)
    return fit_tensor_cores(model) if GRAPHS[made].tensor_cores else model


def weighted_layers(model: Network) -> list[Layer]:
    """Every convolution and linear layer, in the order in which they run."""
    import torch

    layers = []
    handles = []

    def watch(path: str, module: torch.nn.Conv2d | torch.nn.Linear) -> None:
        def note(_: object, __: object, output: torch.Tensor) -> None:
            weight = module.weight
            depthwise = getattr(module, "groups", 1) > 1
            macs = output.numel() * weight[0].numel()
            layers.append(Layer(path, depthwise, macs, (weight.shape[1], weight.shape[0])))

        handles.append(module.register_forward_hook(note))

    for path, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            watch(path, module)
    with torch.no_grad():
        model(torch.zeros(1, 3, *model.img_size))
    for handle in handles:
        handle.remove()
    return layers


def _predicted(candidate: Candidate, graph: Path, options: ExportOptions) -> Prediction | None:
    advice = candidate.target.gpu_advice
    if advice is None or candidate.precision not in advice.alignment:
        return None
    return advice.predict(graph, options.gpu_archs, options.batch)


def _describe(
    candidate: Candidate,
    layers: Sequence[Layer],
    total: int,
    options: ExportOptions,
    predicted: Mapping[Candidate, Prediction | None],
) -> Iterator[str]:
    advice = candidate.target.gpu_advice
    yield f"{candidate.name}: the parser reads the whole graph"
    recipe = _recipe(candidate.graph)
    fast = [layer for layer in layers if recipe is None or layer.is_int8(recipe)]
    multiple = 1 if advice is None else advice.alignment.get(candidate.precision, 1)
    aligned = _share(_aligned(fast, multiple), fast)
    if multiple > 1:
        odd = sorted(
            {c for layer in fast if not layer.depthwise for c in layer.channels if c % multiple}
        )
        yield (
            f"- tensor cores: {aligned:.0%} of these multiply-adds have channels in multiples of "
            f"{multiple}" + (f"; not {', '.join(map(str, odd))}" if odd else "")
        )
    own = predicted[candidate]
    if own is not None:
        yield (
            f"- predicted on an NVIDIA {own['gpu']}, not measured: {own['ms']:.2f} ms; "
            f"{own['launches']} launches, {own['moved'] / 1e6:.1f} MB moved"
        )
    if recipe is None:
        return
    share = sum(layer.macs for layer in fast) / total
    yield f"- INT8: {len(fast)} of {len(layers)} layers, {share:.1%} of the multiply-adds"
    for role in dict.fromkeys(role_of([f"{layer.path}.weight"]) for layer in layers):
        kept = [
            layer
            for layer in layers
            if role_of([f"{layer.path}.weight"]) == role and not layer.is_int8(recipe)
        ]
        if kept:
            part = sum(layer.macs for layer in kept) / total
            yield f"- float: {role.name} ({len(kept)}, {part:.1%}): {role.reason}"
    if own is not None:
        rival = predicted.get(Candidate(candidate.target, "fp16"))
        if rival is not None:
            change = own["moved"] / rival["moved"] - 1
            best = "INT8" if own["ms"] < rival["ms"] else "FP16"
            yield f"- INT8 moves {change:+.0%} beside FP16 by the builder's record: ship {best}"
        return
    against = _against_on_cpu() if advice is None else advice.doubts(aligned, options.batch)
    yield "- INT8 is " + (f"unlikely to pay: {'; '.join(against)}" if against else "likely to pay")


def _recipe(graph: str) -> Recipe | None:
    """The INT8 recipe of a graph or of what it is made from."""
    name = int8_graph(graph)
    return None if name is None else RECIPES[str(GRAPHS[name].recipe)]


def _aligned(layers: Sequence[Layer], multiple: int) -> list[Layer]:
    return [
        layer
        for layer in layers
        if not layer.depthwise and not any(channels % multiple for channels in layer.channels)
    ]


def _share(part: Sequence[Layer], whole: Sequence[Layer]) -> float:
    return sum(layer.macs for layer in part) / max(1, sum(layer.macs for layer in whole))


def _against_on_cpu() -> list[str]:
    fast = has_int8_dot_products(describe(seed=0))
    return [] if fast else ["this CPU has no INT8 dot products"]
