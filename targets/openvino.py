"""OpenVINO: IR files from an ONNX graph, and what runs them on the CPU or another device."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from cmt.errors import MachineError
from cmt.targets.base import (
    Array,
    Batch,
    BuildRequest,
    Compiled,
    Served,
    Target,
    Way,
    missing_package,
)
from cmt.targets.entries import Built
from cmt.targets.settings import CPU, DEVICE, PRECISION, STREAMS, THREADS, Settings

if TYPE_CHECKING:
    import openvino as ov

# Float32 wherever the file says float: OpenVINO would otherwise pick BF16 by itself where the
# CPU has it, and the report would compare precisions that nobody asked for.
OPENVINO_SETTINGS: Settings = {
    "PERFORMANCE_HINT": "LATENCY",
    STREAMS: 1,
    PRECISION: "f32",
}
_INT8 = ("i8", "u8")
_KERNELS = (*_INT8, "f16", "bf16", "f32")
"""Types that the names of kernels end with."""
POINTWISE_KERNELS = "cpu:brgconv_avx512_amx_1x1,cpu:jit_avx512_1x1"
"""For 1x1 convolutions in INT8, the first that the CPU has; with neither, OpenVINO's own choice.

Without AMX it would take `brgconv_avx512_1x1`, with which CMT-Ti takes 1.00 to 1.06 times as long
(median of six runs 1.03) and CMT-S 1.00 to 1.02 times."""


AUTO = "AUTO"
"""The device of OpenVINO's choice."""
_NO_FALLBACK = {"ENABLE_STARTUP_FALLBACK": False, "ENABLE_RUNTIME_FALLBACK": False}
"""AUTO would answer from the CPU until its device is ready: what is checked is to be what runs."""
NOT_TAKEN = "not taken"
"""What stands for a setting that a device does not know."""


def _missing() -> str | None:
    """What to install, or None where OpenVINO is present."""
    if find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'cmt-export[export]'"
    return None


@cache
def openvino_core() -> ov.Core:
    """OpenVINO, once for the process.

    Each `Core` that compiles replaces the thread's alternative signal stack, and puts back the one
    it found when it goes. Of two that overlap, the second would put back the first's, which is
    freed by then: the next signal, Ctrl-C for one, would crash the process.
    """
    import openvino as ov

    return ov.Core()


def devices() -> list[str]:
    """What files can be compiled for here, the CPU first."""
    found = openvino_core().available_devices
    # GPU stands for GPU.0 where there are several.
    return [*dict.fromkeys([CPU, *found, *(name.split(".")[0] for name in found)]), AUTO]


def build_ir(graph: Path, precision: str, path: Path, device: str = CPU) -> Built:
    """Write `path` (.xml) and its .bin; returns what they were built with and how to run them.

    Args:
        graph: ONNX file; for int8, one with Q/DQ in it.
        precision: fp16 stores the weights in half precision.
        device: that they are first run on; the files are for any.

    Raises:
        MachineError: the files cannot be written.
    """
    import openvino as ov

    # read_model, for convert_model reports usage.
    model = openvino_core().read_model(graph)
    _name_by_place(model)
    try:
        ov.save_model(model, path, compress_to_fp16=precision == "fp16")
        if precision == "int8":
            _prefer_pointwise_kernels(path)
    except (RuntimeError, OSError) as error:  # OpenVINO does not say why
        raise MachineError(f"OpenVINO cannot write {path} (the disk may be full)") from error
    settings = {**OPENVINO_SETTINGS, PRECISION: float_arithmetic(precision, device)}
    return {
        "built_with": {"openvino": version("openvino")},
        "built_for": [device],
        "settings": settings,
    }


def _prefer_pointwise_kernels(path: Path) -> None:
    """Write `POINTWISE_KERNELS` into an IR file, where the plugin reads it from each convolution.

    Into the file, since OpenVINO's Python sets no attribute that a model is saved with. Float
    convolutions, whose weights are constants and not dequantised, stay as they are.
    """
    tree = ElementTree.parse(path)
    layers = {layer.get("id"): layer for layer in tree.iterfind("layers/layer")}
    for edge in tree.iterfind("edges/edge[@to-port='1']"):
        weight, layer = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        if layer.get("type") != "Convolution" or weight.get("type") != "Multiply":
            continue
        _, port = layer.iterfind("input/port")
        if [dimension.text for dimension in port.iterfind("dim")][2:] == ["1", "1"]:
            info = ElementTree.Element("rt_info")
            attribute = {"name": "primitives_priority", "version": "0", "value": POINTWISE_KERNELS}
            ElementTree.SubElement(info, "attribute", attribute)
            layer.insert(1, info)  # behind the layer's data, where OpenVINO writes it
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _name_by_place(model: ov.Model) -> None:
    """Name by its place in the graph what has no name but its type and numbers.

    OpenVINO's own names count all nodes that the process has ever made, and ONNX nodes that are
    called alike give way to them: the same graph would give other bytes in another process.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z][A-Za-z]*(_\d+)+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


def float_arithmetic(precision: str, device: str = CPU) -> str:
    """In which type a device should compute what a file of this precision leaves float.

    BF16 where it has instructions for it, except for fp32, which means what it says. What
    INT8 leaves float is bound by memory for the most part, which BF16 halves.
    """
    return "bf16" if precision != "fp32" and _has_bf16(device) else "f32"


def _has_bf16(device: str = CPU) -> bool:
    return "BF16" in _capabilities(device)


def _capabilities(device: str) -> list[str]:
    return openvino_core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def _computes_otherwise(settings: Settings) -> str | None:
    device = settings.get(DEVICE, CPU)
    if settings.get(PRECISION) == "bf16" and not _has_bf16(device):
        return f"this {device} has no BF16 and computes it in float32"
    if device != CPU and "FP32" not in _capabilities(device):
        return f"this {device} has no float32 and computes in FP16"
    return None


def _properties(device: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings that a device takes; another one than the CPU refuses a file for the others."""
    if device == CPU:
        return asked
    if asked.get(PRECISION) == "bf16" and not _has_bf16(device):
        asked = {**asked, PRECISION: "f32"}
    if device == AUTO:  # which hands on what its choice takes
        return {**asked, **_NO_FALLBACK}
    known = openvino_core().get_property(device, "SUPPORTED_PROPERTIES")
    return {name: value for name, value in asked.items() if known.get(name) == "RW"}


def load_openvino(
    path: Path, threads: int, settings: Settings | None = None, batch: int | None = None
) -> IrRunner:
    """An IR or ONNX file, compiled with `settings` (`OPENVINO_SETTINGS` by default).

    A number of threads in the settings, as `measure.tune` finds it, comes before `threads`; without
    a `settings.DEVICE` among them, it is compiled for the CPU.
    """
    core = openvino_core()
    _require_ir(path)
    model = core.read_model(path)
    if batch is not None and model.input(0).shape[0] != batch:
        model.reshape([batch, *list(model.input(0).shape)[1:]])
    asked = {THREADS: threads, **(settings or OPENVINO_SETTINGS)}
    device = asked.pop(DEVICE, CPU)
    compiled = core.compile_model(model, device, _properties(device, asked))
    return IrRunner(model, compiled, asked, device)


class IrRunner:
    """A compiled model as a `Runner`, with a request for each thread that calls it.

    Args:
        asked: the properties that it was to be compiled with.
        device: that it was compiled for.
    """

    def __init__(
        self, model: ov.Model, compiled: ov.CompiledModel, asked: Settings, device: str = CPU
    ) -> None:
        from openvino import Tensor

        self._model, self._compiled, self._asked = model, compiled, asked
        self._device = device
        self._tensor, self._count = Tensor, len(compiled.outputs)
        self._own = threading.local()
        self._own.request = compiled.create_infer_request()

    def __call__(self, images: Batch) -> list[Array]:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        request = self._own.request
        # What `infer([images])` does around it costs 2 % of CMT-Ti's time in INT8. Memory that
        # may not be written to cannot be shared.
        shared = np.require(images, requirements=("C_CONTIGUOUS", "WRITEABLE"))
        request.set_input_tensor(self._tensor(shared, shared_memory=True))
        request.infer(share_outputs=True, decode_strings=False)
        return [request.get_output_tensor(i).data.copy() for i in range(self._count)]

    def compiled(self) -> Compiled:
        """What OpenVINO made of the file."""
        settings = dict(in_force(self._compiled, self._asked))
        layers: dict[str, int] = {}
        if self._device != CPU:
            kept = _properties(self._device, dict(self._asked))
            settings |= {n: NOT_TAKEN for n in self._asked if n not in kept and n != THREADS}
        if self._device == AUTO:
            settings[DEVICE] = ", ".join(self._compiled.get_property("EXECUTION_DEVICES"))
        with suppress(RuntimeError, KeyError):  # of a device that does not tell
            layers = layers_run(self._compiled)
        int8 = int8_layers(self._model) if layers else 0
        return {"settings": settings, "int8_in_file": int8, "layers": layers}


def in_force(compiled: ov.CompiledModel, asked: Settings) -> Settings:
    """The properties asked for as the compiled model has them; those that it does not tell lack."""
    import openvino as ov

    found = {}
    for name in asked:
        with suppress(RuntimeError):  # one that is taken and not told
            value = compiled.get_property(name)
            plain = isinstance(value, (str, int, float))
            named = value.get_type_name() if isinstance(value, ov.Type) else str(value)
            found[name] = value if plain else named
    return found


def int8_layers(model: ov.Model) -> int:
    """How many convolutions and products of a model have weights in INT8."""
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    layers = (node for node in model.get_ordered_ops() if node.get_type_name() in kinds)
    return sum(_origin(layer.input_value(1)) in _INT8 for layer in layers)


def _origin(value: Any) -> str | None:
    """The type of the constant that a weight is made of; None where it is computed."""
    steps = ("Multiply", "Subtract", "Convert", "Reshape", "Transpose")
    node = value.get_node()
    while node.get_type_name() in steps:
        node = node.input_value(0).get_node()
    constant = node.get_type_name() == "Constant"
    return node.get_output_element_type(0).get_type_name() if constant else None


def layers_run(compiled: ov.CompiledModel) -> dict[str, int]:
    """The convolutions and products that a compiled model runs, counted by type.

    The type is that of what a kernel is given (`brgconv_avx2_f32`): `runtimePrecision` would be
    that of weights stored in half precision, which a CPU without FP16 computes with in float32.
    """
    return dict(Counter(_types_run(compiled.get_runtime_model())))


def _types_run(runtime_model: ov.Model) -> Iterator[str]:
    kinds = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
    for node in runtime_model.get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in kinds:
            kernel = info["primitiveType"].astype(str).rpartition("_")[2].lower()
            kind = kernel if kernel in _KERNELS else info["runtimePrecision"].astype(str)
            yield "int8" if kind in _INT8 else kind


def _require_ir(path: Path) -> None:
    """OpenVINO would ask the readers of all frameworks' formats about an IR that is none."""
    with path.open("rb") as file:
        if path.suffix == ".xml" and file.read(1) != b"<":
            raise RuntimeError("it is no OpenVINO IR")  # as OpenVINO's own errors are


def tune_space(settings: Settings, threads: int) -> list[Settings]:
    """What is tried: the settings as they are first, then fewer threads and float32.

    Threads halve down to one: two threads of one core, or more than a small network feeds, may
    cost more than they bring. Streams are not searched: for one request at a time, one is best.
    """
    counts = [threads]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    hints = dict.fromkeys([settings[PRECISION], "f32"])
    return [{**settings, THREADS: count, PRECISION: hint} for count, hint in product(counts, hints)]


def _build(request: BuildRequest) -> Built:
    return build_ir(request.graph, request.precision, request.path, request.device or CPU)


def _unsupported(graph: Path) -> list[str]:
    try:
        openvino_core().read_model(graph)
    except RuntimeError as error:
        return [str(error)]
    return []


def _at_once(settings: Settings | None, threads: int) -> Way:
    """A request on each CPU; on another device, one after the other."""
    asked = settings or OPENVINO_SETTINGS
    if asked.get(DEVICE, CPU) != CPU:
        return Way(settings, threads)
    return Way({**asked, THREADS: threads, STREAMS: threads}, threads, threads)


def _cached(settings: Settings, folder: Path) -> Settings:
    return {**(settings or OPENVINO_SETTINGS), "CACHE_DIR": str(folder)}


TARGET = Target(
    "openvino",
    graphs={"fp32": "rewritten-simplified", "fp16": "rewritten-simplified", "int8": "fitted-qdq"},
    suffix="xml",
    missing=_missing,
    build=_build,
    load=load_openvino,
    missing_runtime=partial(missing_package, "openvino"),
    always=("fp32",),
    rival="fp16",
    unsupported=_unsupported,
    devices=devices,
    takes_streams=True,
    at_once=_at_once,
    served={
        "triton": Served("model.xml", "openvino"),
        "ovms": Served("model.xml"),
    },
    cached=_cached,
    computes_otherwise=_computes_otherwise,
    tune_space=tune_space,
)
