"""An INT8 graph's fitted activations, put back to GELU stage by stage."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator

import onnx

PREFIX = "exact/"
"""Of the tensors within a part that came from the exact graph."""
_UNIT = "stand-ins"
"""What reports call fitted activations, which stand in for GELU."""
_FFN = re.compile(r"(stages\.(\d+)\.blocks\.\d+\.ffn)\.")


def fitted_units(model: onnx.ModelProto) -> list[str]:
    """The units of `quantize.activation`'s fitted activations: one for each stage with any."""
    return [_unit(stage) for stage in sorted({stage for _, stage in _paths(model)})]


def goes_back(weight: str, units: Container[str]) -> bool:
    """Whether `restore_gelu` puts the exact graph's in the place of the weight of this name."""
    match = _FFN.match(weight)
    return match is not None and _unit(int(match[2])) in units


def is_fitted_unit(unit: str) -> bool:
    """Whether a unit is one of `fitted_units`."""
    return unit.startswith(_UNIT)


def _unit(stage: int) -> str:
    return f"{_UNIT}, stage {stage + 1}"


def restore_gelu(
    fitted: onnx.ModelProto, exact: onnx.ModelProto, units: Container[str]
) -> onnx.ModelProto:
    """A copy of the fitted graph, whose IRFFNs of some stages are the exact graph's.

    Args:
        fitted, exact: the rewritten network with and without them, simplified, of the same
            layers; what the IRFFNs consist of stands together in both.
        units: of `fitted_units`, those that go.
    """
    result = onnx.ModelProto.FromString(fitted.SerializeToString())
    nodes, source = list(result.graph.node), list(exact.graph.node)
    constants = {tensor.name: tensor for tensor in exact.graph.initializer}
    taken: set[str] = set()
    for path, stage in _paths(exact):
        if _unit(stage) not in units:
            continue
        begin, end = _span(nodes, path)
        first, last = _span(source, path)
        part = [onnx.NodeProto.FromString(n.SerializeToString()) for n in source[first : last + 1]]
        names = {name: PREFIX + name for node in part for name in node.output}
        names[source[first].input[0]] = nodes[begin].input[0]
        names[source[last].output[0]] = nodes[end].output[0]
        for node in part:
            taken |= set(node.input) & set(constants)
            node.name = PREFIX + node.name
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        nodes[begin : end + 1] = part
    read = {name for node in nodes for name in node.input}
    kept = [t for t in result.graph.initializer if t.name in read and t.name not in taken]
    kept += [constants[name] for name in sorted(taken)]
    for field, items in (
        (result.graph.node, nodes),
        (result.graph.initializer, kept),
        (result.graph.value_info, []),
    ):
        del field[:]
        field.extend(items)
    onnx.checker.check_model(result, full_check=True)
    return result


def _paths(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """The IRFFNs and the numbers of their stages."""
    for tensor in model.graph.initializer:
        match = _FFN.match(tensor.name)
        if match is not None and tensor.name == f"{match[1]}.expand.weight":
            yield match[1], int(match[2])


def _span(nodes: list[onnx.NodeProto], path: str) -> tuple[int, int]:
    """The places of an IRFFN's first and last layer."""
    places = {n.input[1]: i for i, n in enumerate(nodes) if n.op_type == "Conv"}
    return places[f"{path}.expand.weight"], places[f"{path}.project.weight"]
