"""Make a float ONNX graph integer where the policy says so, with ONNX Runtime's own quantizer.

Layers with 8-bit activations get Quantize/Dequantize pairs, and so does the glue between them
(see ``onnx_glue``): only then do the runtime's integer kernels meet without a detour through
floats. Weight-only layers keep small integer weights behind one DequantizeLinear, or, of fewer than
8 bits in linear layers, in a product of their own (see ``onnx_blocks``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExportError
from autocompress.exporters.onnx_blocks import store_blocks, stored_matrix
from autocompress.exporters.onnx_dynamic import quantize_dynamic
from autocompress.exporters.onnx_floats import keep_floats
from autocompress.exporters.onnx_glue import activations, with_glue
from autocompress.exporters.onnx_graph import fixed_tensors, layer_nodes
from autocompress.exporters.onnx_integers import Integers, clean_up
from autocompress.exporters.onnx_low_bits import (
    channel_axis,
    knowing_low_bits,
    store_low_bits,
    weight_place,
)
from autocompress.exporters.onnx_reads import reads, sort_nodes
from autocompress.exporters.onnx_simplify import drop_unused
from autocompress.techniques.compressed import Compressed, Precision, tensors_alone
from autocompress.techniques.quantize import round_weight, stored_scale

_FLOAT_ONLY = ("ConvTranspose", "Gather")
"""Operators that runtimes compute in float, whose weights may be integers all the same."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "Gather")


@dataclass(frozen=True)
class NodePlan:
    """Which nodes of a graph are treated how.

    Args:
        layers: module name to its multiplying nodes, for modules with a precision.
        static: names of nodes between Quantize and Dequantize, glue included.
        dynamic: names of nodes whose input range is taken at run time.
        weight_only: node name to the precision of its weight alone.
        half: names of nodes in half precision.
    """

    layers: Mapping[str, list[Any]]
    static: tuple[str, ...]
    dynamic: tuple[str, ...]
    weight_only: Mapping[str, Precision]
    half: tuple[str, ...]


def plan_nodes(graph: Any, compressed: Compressed) -> NodePlan:
    """Sort the nodes of a float graph by what the precisions ask for.

    Raises:
        ExportError: a quantized layer has no node in the graph.
    """
    wanted = {n: p for n, p in compressed.precisions.items() if p != Precision()}
    found = layer_nodes(graph, wanted)
    for name in wanted:
        if name not in found:
            raise ExportError(
                f"The exported graph shows no operator of the layer {name!r}, which "
                "is to be quantized. Leave it at 32 bits."
            )
    static, dynamic, half = set(), [], []
    weight_only: dict[str, Precision] = {}
    fixed = fixed_tensors(graph.graph)
    for name, nodes in found.items():
        precision = wanted[name]
        for node in nodes:
            if precision.integer and node.op_type in ("GRU", "RNN"):
                raise ExportError(
                    f"The runtime has no integer kernel for the {node.op_type} {name!r}. Leave it "
                    "at 32 bits."
                )
            if precision.integer and node.op_type in _FLOAT_ONLY:
                weight_only[node.name] = precision
            elif precision.integer and precision.activation_scaling == "dynamic":
                dynamic.append(node.name)
            elif precision.integer and node.op_type in ("Conv", "Gemm", "MatMul"):
                if node.op_type != "MatMul" or fixed & {*node.input}:
                    static.add(node.name)  # conversions cost more than products of activations gain
            elif precision.integer:
                dynamic.append(node.name)  # recurrent kernels know dynamic ranges only
            elif precision.half:
                half.append(node.name)
            elif precision.weight_bits < 16 and node.input[weight_place(node)] in fixed:
                weight_only[node.name] = precision  # attention multiplies others, too
        if (
            precision.weight_bits < 16
            and not precision.integer
            and not weight_only.keys() & {node.name for node in nodes}
        ):
            raise ExportError(
                f"The exported graph holds no weight of {name!r} that depends on no input, so that "
                "none can be stored in fewer bits. Leave the layer at 32 bits, or give it "
                "`activation_bits: 8` as well."
            )
    return NodePlan(
        found,
        tuple(with_glue(graph.graph, static, compressed.ranges)),
        tuple(dynamic),
        weight_only,
        tuple(half),
    )


def quantized_tensors(graph: Any, plan: NodePlan) -> list[str]:
    """Activations that get a Quantize/Dequantize pair: inputs and outputs of static nodes."""
    return activations(graph.graph, plan.static)


def quantize_graph(graph: Any, compressed: Compressed) -> Any:
    """A quantized copy of a float graph.

    Args:
        graph: ``onnx.ModelProto`` as ``float_graph`` gives it; not changed.
        compressed: with precisions, and ranges where activations are static.

    Raises:
        ExportError: activations are to be static integers but were not calibrated.
    """
    import onnx

    plan = plan_nodes(graph, compressed)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    _own_weights(model, {node.name for nodes in plan.layers.values() for node in nodes})
    scales = _round_low_bits(model, plan, compressed)
    reduced = any(p.reduced for p in compressed.precisions.values())
    if plan.dynamic:
        model = quantize_dynamic(model, plan.dynamic, scales, reduced=reduced)
    if plan.static:
        if compressed.ranges is None:
            raise ExportError("Static 8-bit activations need ranges: calibrate before exporting.")
        work = Integers(model, set(plan.static), dict(compressed.ranges))
        work.prepare()
        model = static_integers(work, scales, reduced=reduced)
        clean_up(model, work)
    packed = {
        name: precision
        for name, precision in plan.weight_only.items()
        if precision.block or _stays_packed(model, name, precision)
    }
    stored = {n: p.weight_bits for n, p in plan.weight_only.items() if n not in packed}
    if any(bits < 8 for bits in stored.values()):
        knowing_low_bits(model)
    for name, bits in stored.items():
        store_low_bits(model, name, bits)
    if plan.static:
        keep_floats(model, work.static)
    if plan.half:
        if compressed.settings.half_format != "float16":
            raise ExportError(
                "An ONNX file has no bfloat16 convolutions that its runtimes would open. Use "
                "`settings.half_format: float16`, or a `.pt2` file."
            )
        model = _half(model, plan.half)
    for name, precision in packed.items():  # last: others infer types, and know no such operator
        store_blocks(model, name, precision.weight_bits, precision.block)
    drop_unused(model.graph)
    sort_nodes(model)
    return model


def _stays_packed(model: Any, name: str, precision: Precision) -> bool:
    """Whether the runtime can multiply the weight of a product as it is stored.

    Behind a DequantizeLinear it makes floats of a ``Gemm``'s whole weight at every run, or rounds
    the inputs of a ``MatMul`` to 8 bits, which nobody asked for. A table that others read as well
    would stand in the file twice.
    """
    if precision.weight_bits >= 8 or stored_matrix(model, name) is None:
        return False
    weight = next(n for n in model.graph.node if n.name == name).input[1]
    return sum(weight in node.input for node in model.graph.node) == 1


def _round_low_bits(
    model: Any, plan: NodePlan, compressed: Compressed
) -> dict[str, NDArray[np.float32]]:
    """Put 2 to 4 bit weights of integer layers on their grid; the kernels store them in 8 bits.

    Returns:
        Name of each such node to the scale, by output channel, at which its weight is stored.
    """
    import torch
    from onnx import numpy_helper

    scales = {}

    chosen = {
        node.name: compressed.precisions[name].weight_bits
        for name, nodes in plan.layers.items()
        for node in nodes
    }
    weights = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        bits = chosen.get(node.name, 32)
        if bits >= 8 or node.name in plan.weight_only or len(node.input) < 2:
            continue
        if node.op_type == "LSTM":
            _round_recurrent([weights[i] for i in node.input[1:3] if i in weights], bits)
            continue
        tensor = weights.get(node.input[1])
        if tensor is None:
            continue
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if value.dim() < 2:
            continue  # a scale of attention, not a weight
        rows = value.transpose(0, channel_axis(node))
        scales[node.name] = stored_scale(rows, bits).flatten().numpy()
        rounded = round_weight(rows, bits).transpose(0, channel_axis(node))
        tensor.CopyFrom(numpy_helper.from_array(rounded.contiguous().numpy(), tensor.name))
    return scales


def _round_recurrent(tensors: Iterable[Any], bits: int) -> None:
    """Round what an LSTM multiplies inputs and states with, ``(directions, 4 * hidden, inputs)``.

    Every row has a scale, as in torch. The runtime stores rows in 8 bits at scales of its own.
    """
    import torch
    from onnx import numpy_helper

    for tensor in tensors:
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        rounded = round_weight(value.flatten(0, 1), bits).view_as(value)
        tensor.CopyFrom(numpy_helper.from_array(rounded.numpy(), tensor.name))


def _own_weights(model: Any, chosen: set[str]) -> None:
    """Give each call of a quantized layer a weight and bias that nothing else reads.

    An integer bias has the scale of the call's input times the weight's, which calls cannot share,
    and the runtime makes a call integer only where nothing else reads its weight.
    """
    held = {i.name: i for i in model.graph.initializer}
    seen = {i for n in model.graph.node if n.name not in chosen for i in reads(n)}
    for number, node in enumerate(model.graph.node):
        if node.name not in chosen or node.op_type not in _WEIGHTED:
            continue
        for place, name in enumerate(node.input):
            if place < weight_place(node):
                continue
            if name in seen and name in held:
                copied = model.graph.initializer.add()
                copied.CopyFrom(held[name])
                copied.name = node.input[place] = f"{name}_{number}"
            seen.add(name)


def static_integers(
    work: Integers, scales: Mapping[str, NDArray[np.float32]], *, reduced: bool
) -> Any:
    """Quantize/Dequantize pairs around integer nodes, by ONNX Runtime's quantizer.

    Args:
        work: prepared; its model is used up.
        scales: of some nodes, at which their weights are stored, by output channel.
        reduced: see ``weight_limit``.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    tensors = {
        n: TensorData(lowest=np.float32(r.low), highest=np.float32(r.high))
        for n, r in tensors_alone(work.ranges).items()
    }
    nodes = [n for n in work.model.graph.node if n.name in work.static]
    overrides = {
        n.input[1]: [
            {"axis": channel_axis(n), "scale": scale, "zero_point": 0} for scale in scales[n.name]
        ]
        for n in nodes
        if n.name in scales
    }
    # without inferred types the quantizer takes nothing for a float tensor
    inferred = onnx.shape_inference.infer_shapes(work.model)
    quantizer = QDQQuantizer(
        inferred,
        per_channel=True,
        reduce_range=reduced,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[n.name for n in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({n.op_type for n in nodes}),
        extra_options={"WeightSymmetric": True, "TensorQuantOverrides": overrides},
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _half(model: Any, nodes: tuple[str, ...]) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    others = [n.name for n in model.graph.node if n.name not in nodes]
    return convert_float_to_float16(model, keep_io_types=True, node_block_list=others)
