"""From a float torch module to an ONNX graph whose layers can be recognized."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autocompress.errors import ExportError

OPSET = 18


def float_graph(module: nn.Module, example: Any) -> Any:
    """Export a folded module with a free batch dimension.

    Args:
        module: float, in eval mode, norms folded.
        example: one batched input, or a tuple.

    Returns:
        An ``onnx.ModelProto`` with inputs ``input``, ``input_1``, ... and output ``output``.

    Raises:
        ExportError: the exporter does not know an operator of the model.
    """
    import onnx

    from autocompress.exporters.onnx_simplify import simplify

    inputs = example if isinstance(example, tuple) else (example,)
    names = ["input", *(f"input_{i}" for i in range(1, len(inputs)))]
    buffer = io.BytesIO()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                inputs,
                buffer,
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=["output"],
                dynamic_axes={n: {0: "batch"} for n in [*names, "output"]},
                do_constant_folding=True,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as error:
        raise ExportError(f"The model cannot be exported to ONNX: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    graph = onnx.load_model_from_string(buffer.getvalue())
    simplify(graph)
    return graph


def layer_of(node_name: str, modules: Iterable[str] | set[str]) -> str | None:
    """The module that a node came from, by the scopes in its name.

    ``/layer1/layer1.0/conv1/Conv`` is ``layer1.0.conv1``: each scope is an attribute, or repeats
    the last attribute with the place in a sequence. A module that runs again has a number behind
    its scope: ``/conv1_1/Conv`` is the second call of ``conv1``.
    """
    known = modules if isinstance(modules, set) else set(modules)
    scopes = node_name.strip("/").split("/")[:-1]
    name = _joined(scopes)
    if name not in known:
        name = _joined([re.sub(r"_\d+$", "", scope) for scope in scopes])
    return name if name in known else None


def _joined(scopes: list[str]) -> str:
    """Dotted name of nested scopes."""
    current: list[str] = []
    for scope in scopes:
        parts = scope.split(".")
        # a sequence's scope is told again before the place in it, one inside the other
        told = range(min(len(current), len(parts) - 1), 0, -1)
        repeated = next((n for n in told if current[-n:] == parts[:n]), 0)
        current += parts[repeated:]
    return ".".join(current)


def layer_nodes(graph: Any, modules: Iterable[str]) -> dict[str, list[Any]]:
    """Module name to its own multiplying nodes, in graph order."""
    known = set(modules)
    found: dict[str, list[Any]] = {}
    constants = {i.name for i in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[1] in constants:
            continue  # picks a part of a tensor; an embedding is picked from by the input
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Gather"):
            name = layer_of(node.name, known)
            if name is not None:
                found.setdefault(name, []).append(node)
    return found
