"""What an export would build, and what stands in its way, found out without writing anything."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmt.errors import InputError
from cmt.network import CMT, count_macs
from export.bundle import check_destination
from export.candidates import GRAPHS, Candidate, int8_graph
from export.options import ExportOptions
from export.pipeline import Run, plan
from export.progress import ProgressBars
from measure.environment import describe, has_int8_dot_products
from quantize.recipe import SCHEMES, Scheme, role_of

IMAGES = 16
"""Enough to trace the graphs; accuracy needs them all."""
ALIGNMENT = {"fp16": 8, "int8": 16}
"""Channels that fill the tensor cores' tiles come in multiples of this."""


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

    def is_int8(self, scheme: Scheme) -> bool:
        """Whether the recipe puts it into INT8."""
        return scheme.is_int8([f"{self.path}.weight"], self.depthwise)


def preflight(options: ExportOptions, show_progress: bool = False) -> list[str]:
    """Trace, quantise and parse what would be built, on a few images, in a folder that goes again.

    Returns lines for people. Raises InputError for whatever the export itself would refuse, an
    operator that a target lacks included, and GateError where a step breaks the network.
    """
    candidates, inputs = plan(options)
    check_destination(options.bundle, options.force or options.resume)
    few = replace(options, calib_count=min(IMAGES, options.calib_count), qat=0, qat_data=None)
    inputs.tuning = None  # looked at by `plan`, and of no use here
    inputs.validation_count = min(IMAGES, inputs.validation_count or IMAGES)
    with (
        tempfile.TemporaryDirectory(prefix="cmt-dry-run-") as folder,
        ProgressBars(show_progress) as progress,
    ):
        graphs = Run(few, candidates, inputs, Path(folder), progress, held_out=IMAGES).rehearse()
        for candidate in candidates:
            check = candidate.target.unsupported
            problems = check(graphs[candidate.name]) if check is not None else []
            if problems:
                raise InputError(f"{candidate.name} cannot be built: {'; '.join(problems)}")
    model = inputs.model
    total = count_macs(model, model.img_size)
    height, width = model.img_size
    batch = ":".join(map(str, options.batches or (options.batch,)))
    lines = [
        f"{model.variant.name} ({model.family.name}), {height}x{width}, batch {batch}: "
        f"{total / 1e9:.2f} G multiply-adds"
    ]
    layers = weighted_layers(model)
    for candidate in candidates:
        lines += _describe(candidate, layers, total, options)
    return [*lines, *(f"warning: {warning}" for warning in inputs.warnings)]


def weighted_layers(model: CMT) -> list[Layer]:
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


def _describe(
    candidate: Candidate, layers: Sequence[Layer], total: int, options: ExportOptions
) -> Iterator[str]:
    on_gpu = candidate.target.name == "tensorrt"
    yield f"{candidate.name}: the parser reads the whole graph"
    scheme = _scheme(candidate.target.graphs[candidate.precision])
    fast = [layer for layer in layers if scheme is None or layer.is_int8(scheme)]
    aligned = _share(_aligned(fast, candidate.precision), fast)
    if on_gpu and candidate.precision in ALIGNMENT:
        multiple = ALIGNMENT[candidate.precision]
        odd = sorted(
            {c for layer in fast if not layer.depthwise for c in layer.channels if c % multiple}
        )
        yield (
            f"- tensor cores: {aligned:.0%} of these multiply-adds have channels in multiples of "
            f"{multiple}" + (f"; not {', '.join(map(str, odd))}" if odd else "")
        )
    if scheme is None:
        return
    share = sum(layer.macs for layer in fast) / total
    yield f"- INT8: {len(fast)} of {len(layers)} layers, {share:.1%} of the multiply-adds"
    for role in dict.fromkeys(role_of([f"{layer.path}.weight"]) for layer in layers):
        kept = [
            layer
            for layer in layers
            if role_of([f"{layer.path}.weight"]) == role and not layer.is_int8(scheme)
        ]
        if kept:
            part = sum(layer.macs for layer in kept) / total
            yield f"- float: {role.name} ({len(kept)}, {part:.1%}): {role.reason}"
    against = _against_on_gpu(aligned, options.batch) if on_gpu else _against_on_cpu()
    yield "- INT8 is " + (f"unlikely to pay: {'; '.join(against)}" if against else "likely to pay")


def _scheme(graph: str) -> Scheme | None:
    """The INT8 scheme of a graph or of what it is made from."""
    name = int8_graph(graph)
    return None if name is None else SCHEMES[str(GRAPHS[name].scheme)]


def _aligned(layers: Sequence[Layer], precision: str) -> list[Layer]:
    multiple = ALIGNMENT.get(precision, 1)
    return [
        layer
        for layer in layers
        if not layer.depthwise and not any(channels % multiple for channels in layer.channels)
    ]


def _share(part: Sequence[Layer], whole: Sequence[Layer]) -> float:
    return sum(layer.macs for layer in part) / max(1, sum(layer.macs for layer in whole))


def _against_on_gpu(aligned: float, batch: int) -> list[str]:
    """Rules of thumb from what others measured on vision transformers; no GPU was asked."""
    found = []
    if batch < 8:
        found.append(f"at batch {batch} others measured little gain or a loss")
    if aligned < 0.5:
        found.append("most channels do not fill the tensor cores")
    return found


def _against_on_cpu() -> list[str]:
    fast = has_int8_dot_products(describe(seed=0))
    return [] if fast else ["this CPU has no INT8 dot products"]
