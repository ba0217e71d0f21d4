"""From a float torch module to an ONNX graph whose layers can be recognized."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from autocompress.errors import ExportError, explained
from autocompress.exporters.agreement import Unsteady
from autocompress.exporters.names import LayerCall, Traced, layer_of, name_nodes, program_origin
from autocompress.exporters.onnx_reads import reads
from autocompress.exporters.onnx_simplify import simplify
from autocompress.exporters.silence import silent
from autocompress.exporters.tracing import watched
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.task.calling import Flat, call, call_flat, input_names, output_names
from autocompress.task.nested import batch_size, concat, tensors

OPSET = 18

Exporter = Literal["torchscript", "dynamo"]

EXPORTER: Exporter = "torchscript"
"""Asked first: it takes a tenth of the other's time or less, and convolutional networks come out
as the same operators. Of a transformer it leaves twice the nodes, of shape arithmetic, which a
runtime computes once where the batch is settled: its files are as quick or up to 6 % quicker
(docs/measurements/timing.md).
"""

_Named = tuple[Any, Callable[[Any], LayerCall | None]]
"""A graph as it was exported, and what tells where its nodes came from."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Signature:
    """What a file takes and gives.

    Args:
        inputs, outputs: names, in order.
        axes: input name to its free axes, each by its name.
        answer: of the model, to the example.
    """

    inputs: list[str]
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    answer: Any

    @property
    def batched(self) -> list[str]:
        """Outputs that have an axis at all."""
        parts = zip(self.outputs, tensors(self.answer), strict=True)
        return [name for name, tensor in parts if tensor.dim()]


_took: dict[str, Exporter] = {}
"""Architecture of an uncompressed model to the exporter that took its last form."""


def float_graph(
    module: nn.Module,
    example: Any,
    exporter: Exporter | None = None,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    check: Callable[[Any], None] = lambda graph: None,
    architecture: str = "",
) -> Any:
    """Export a folded module with a free batch dimension.

    Args:
        module: float, in eval mode, norms folded.
        example: one batch of inputs, built as the model takes them.
        exporter: of torch; what it cannot export, the other one is asked for. ``None`` begins
            with the one that took the last model of this architecture.
        dynamic: input name to its free axes beside the batch, each by its own name.
        check: raises ``ExportError`` where a graph is not what the module computes; then the other
            exporter is asked as well.
        architecture: of the uncompressed model, if known: an exporter that refuses it refuses its
            compressed forms, after seconds.

    Returns:
        An ``onnx.ModelProto`` with inputs and outputs named as ``task.calling`` says, and
        canonical node names.

    Raises:
        ExportError: neither exporter takes the model; or what the check said of the first graph.
    """
    with unfused_attention(), torch.no_grad():
        answer = call(module, example)
    names = input_names(example)
    axes = {name: {0: "batch", **(dynamic or {}).get(name, {})} for name in names}
    signature = _Signature(names, output_names(answer, names), axes, answer)
    first = exporter or _took.get(architecture, EXPORTER)
    reasons, wrong = [], []
    for name in sorted(_EXPORTERS, key=lambda name: name != first):
        try:
            graph = _exported(name, module, example, signature)
        except Exception as error:  # the exporters raise whatever they stumble on
            reasons.append(f"{name}: {explained(_first(error))}")
            _log.info("The %s exporter cannot take the model: %s", name, error)
            continue
        try:
            check(graph)
        except Unsteady:
            raise
        except ExportError as error:
            wrong.append(error)
            _log.info("The %s exporter's graph is not the model: %s", name, error)
            continue
        if architecture:
            _took[architecture] = name
        return graph
    said = str(wrong[0]) if wrong else _unwritable(reasons)
    raise ExportError(f"{_remedy(module, example)}{said}")


def _unwritable(reasons: list[str]) -> str:
    """What to do about a model for which both exporters have a reason."""
    return (
        f"The model cannot be exported to ONNX: {'; '.join(reasons)}. Write what is named there "
        "with operators that ONNX has (complex numbers as two real ones), hand over the part of "
        "the model without it, or let torch run the model: `target: {runtime: torch}`."
    )


def _remedy(module: nn.Module, example: Any) -> str:
    """What to do about a model that no exporter takes, where that is known."""
    packed: list[str] = []

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], nn.utils.rnn.PackedSequence):
                packed.append(name)

        return hook

    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.RNNBase)}
    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            call(module, example)
    finally:
        for handle in handles:
            handle.remove()
    if not packed:
        return ""
    return (
        f"{', '.join(dict.fromkeys(packed))} reads a packed sequence, which exporters take only in "
        "few cases. Give it the padded batch instead, and read its last state as `outputs.gather(1,"
        " (lengths - 1)[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]`: for a layer of one "
        "direction that is the same. "
    )


def _exported(name: Exporter, module: nn.Module, example: Any, signature: _Signature) -> Any:
    """The graph of one exporter, named and simplified."""
    with unfused_attention(), warnings.catch_warnings(), torch.no_grad(), watched():
        warnings.simplefilter("ignore")
        with silent():
            graph, origin = _EXPORTERS[name](module, example, signature)
    name_nodes(graph, origin)
    simplify(graph)
    _keep_inputs(graph, example, signature)
    _keep_ranks(graph, module, example)
    return graph


def _first(error: BaseException) -> BaseException:
    """The first of a chain of errors: those behind it tell torch's developers what to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _keep_inputs(graph: Any, example: Any, signature: _Signature) -> None:
    """A file takes what its model takes: without attention, masks that nothing reads as well.

    Exporters leave these out.
    """
    import onnx

    found = {value.name: value for value in graph.graph.input}
    if all(name in found for name in signature.inputs):
        return
    del graph.graph.input[:]
    for name, part in zip(signature.inputs, tensors(example), strict=True):
        kind = onnx.helper.np_dtype_to_tensor_dtype(part.numpy(force=True).dtype)
        shape = [signature.axes[name].get(i, size) for i, size in enumerate(part.shape)]
        made = onnx.helper.make_tensor_value_info(name, kind, shape)
        graph.graph.input.append(found.get(name, made))


def _keep_ranks(graph: Any, module: nn.Module, example: Any) -> None:
    """Outputs have the axes of several samples: of one alone a model may squeeze its batch away.

    Runtimes believe what is declared, and reshape what they compute to it.
    """
    if batch_size(example) > 1:
        return
    declared = {o.name: o.type.tensor_type.shape for o in graph.graph.output}
    shapes = (shape for shape in declared.values())
    several = call_flat(module, concat([example, example]))
    for shape, tensor in zip(shapes, several, strict=True):
        if len(shape.dim) != tensor.dim():
            del shape.dim[:]
            for axis, size in enumerate(tensor.shape):
                if axis:
                    shape.dim.add().dim_value = size
                else:
                    shape.dim.add().dim_param = "batch"
            del graph.graph.value_info[:]


def _by_torchscript(module: nn.Module, example: Any, signature: _Signature) -> _Named:
    """Trace the module with one input and export the trace."""
    import onnx

    traced = Traced(module, example).eval()
    buffer = io.BytesIO()
    torch.onnx.export(
        traced,
        tuple(tensors(example)),
        buffer,  # type: ignore[arg-type]  # torch's signature forgets buffers, its code takes them
        dynamo=False,
        opset_version=OPSET,
        input_names=signature.inputs,
        output_names=signature.outputs,
        dynamic_axes=signature.axes | {name: {0: "batch"} for name in signature.batched},
        do_constant_folding=True,
    )
    return onnx.load_model_from_string(buffer.getvalue()), traced.origin


def _by_dynamo(module: nn.Module, example: Any, signature: _Signature) -> _Named:
    """Export the module as a program, and the program as a graph."""
    flat = Flat(module, example).eval()
    program = torch.onnx.export(
        flat_program(flat, example, signature.axes),
        dynamo=True,
        opset_version=OPSET,
        input_names=signature.inputs,
        output_names=signature.outputs,
        verbose=False,
    )
    assert program is not None
    return program.model_proto, program_origin(program.exported_program, module)


def flat_program(flat: nn.Module, example: Any, axes: Mapping[str, Mapping[int, str]]) -> Any:
    """``torch.export`` of a module that takes tensors one after another.

    Args:
        flat: for example a ``Flat``.
        example: inputs of its model; a batch of one is doubled, or it would be taken for a
            constant.
        axes: input name to its free axes, each by its name.
    """
    parts = tensors(example if batch_size(example) > 1 else concat([example, example]))
    dims: dict[str, Any] = {"batch": torch.export.Dim("batch", min=1, max=4096)}
    shapes = []
    for name in input_names(example):
        for axis in axes[name].values():
            dims.setdefault(axis, torch.export.Dim.DYNAMIC)
        shapes.append({place: dims[axis] for place, axis in axes[name].items()})
    held = tuple(shapes)
    with watched():
        return torch.export.export(
            flat, tuple(parts), dynamic_shapes=(held,) if isinstance(flat, Flat) else held
        )


_EXPORTERS: dict[Exporter, Callable[[nn.Module, Any, _Signature], _Named]] = {
    "torchscript": _by_torchscript,
    "dynamo": _by_dynamo,
}


def layer_nodes(graph: Any, modules: Iterable[str]) -> dict[str, list[Any]]:
    """Module name to its own multiplying nodes, in graph order.

    Of lookups those into a table that depends on no input (an embedding) count, by places that the
    input gives; the others pick parts of tensors.
    """
    known = set(modules)
    found: dict[str, list[Any]] = {}
    constants = {i.name for i in graph.graph.initializer}
    fixed = fixed_tensors(graph.graph)
    for node in graph.graph.node:
        if node.op_type == "Gather" and (node.input[0] not in fixed or node.input[1] in constants):
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "Gather"):
            layer = layer_of(node.name)
            if layer is not None and layer[0] in known:
                found.setdefault(layer[0], []).append(node)
    return found


def fixed_tensors(graph: Any) -> set[str]:
    """Tensors that depend on no input."""
    found = {i.name for i in graph.initializer}
    for node in graph.node:
        if all(name in found for name in reads(node)):
            found.update(node.output)
    return found
