"""From a float torch module to an ONNX graph whose layers can be recognized."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from autocompress.errors import ExportError
from autocompress.exporters.names import Origin, Traced, layer_of, name_nodes, program_origin

OPSET = 18

Exporter = Literal["torchscript", "dynamo"]

EXPORTER: Exporter = "torchscript"
"""Asked first: it takes a tenth of the other's time or less, and convolutional networks come out
as the same operators. Of a transformer it leaves more shape arithmetic in the file, which costs a
small one about a tenth of its latency.
"""

_Named = tuple[Any, Callable[[Any], Origin | None]]
"""A graph as it was exported, and what tells where its nodes came from."""

_log = logging.getLogger(__name__)


def float_graph(module: nn.Module, example: Any, exporter: Exporter = EXPORTER) -> Any:
    """Export a folded module with a free batch dimension.

    Args:
        module: float, in eval mode, norms folded.
        example: one batched input, or a tuple.
        exporter: of torch; what it cannot export, the other one is asked for.

    Returns:
        An ``onnx.ModelProto`` with inputs ``input``, ``input_1``, ... and output ``output``, and
        canonical node names.

    Raises:
        ExportError: neither exporter takes the model.
    """
    from autocompress.exporters.onnx_simplify import simplify

    inputs = example if isinstance(example, tuple) else (example,)
    names = ["input", *(f"input_{i}" for i in range(1, len(inputs)))]
    reasons = []
    for name in sorted(_EXPORTERS, key=lambda name: name != exporter):
        try:
            with _plain_attention(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                graph, origin = _EXPORTERS[name](module, inputs, names)
        except Exception as error:  # the exporters raise whatever they stumble on
            reasons.append(f"{name}: {type(error).__name__}: {error}")
            _log.info("The %s exporter cannot take the model: %s", name, error)
            continue
        name_nodes(graph, origin)
        simplify(graph)
        return graph
    raise ExportError(f"The model cannot be exported to ONNX. {' '.join(reasons)}")


def _by_torchscript(module: nn.Module, inputs: tuple[Any, ...], names: list[str]) -> _Named:
    """Trace the module with one input and export the trace."""
    import onnx

    traced = Traced(module).eval()
    buffer = io.BytesIO()
    torch.onnx.export(
        traced,
        inputs,
        buffer,  # type: ignore[arg-type]  # torch's signature forgets buffers, its code takes them
        dynamo=False,
        opset_version=OPSET,
        input_names=names,
        output_names=["output"],
        dynamic_axes={n: {0: "batch"} for n in [*names, "output"]},
        do_constant_folding=True,
    )
    return onnx.load_model_from_string(buffer.getvalue()), traced.origin


def _by_dynamo(module: nn.Module, inputs: tuple[Any, ...], names: list[str]) -> _Named:
    """Export the module as a program, and the program as a graph."""
    if len(inputs[0]) < 2:  # a batch of one would be taken for a constant
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=4096)} for _ in inputs)
    program = torch.onnx.export(
        torch.export.export(module, inputs, dynamic_shapes=shapes),
        dynamo=True,
        opset_version=OPSET,
        input_names=names,
        output_names=["output"],
        verbose=False,
    )
    assert program is not None
    return program.model_proto, program_origin(program.exported_program, module)


_EXPORTERS: dict[Exporter, Callable[[nn.Module, tuple[Any, ...], list[str]], _Named]] = {
    "torchscript": _by_torchscript,
    "dynamo": _by_dynamo,
}


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep attention from being one operator of torch's own, which no exporter knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def layer_nodes(graph: Any, modules: Iterable[str]) -> dict[str, list[Any]]:
    """Module name to its own multiplying nodes, in graph order."""
    known = set(modules)
    found: dict[str, list[Any]] = {}
    constants = {i.name for i in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[1] in constants:
            continue  # picks a part of a tensor; an embedding is picked from by the input
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Gather"):
            layer = layer_of(node.name)
            if layer is not None and layer[0] in known:
                found.setdefault(layer[0], []).append(node)
    return found
