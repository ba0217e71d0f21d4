"""Calibration: activation ranges, rounding that compensates its errors, corrected biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.build.equalize import equalize
from autocompress.build.ranges import tensor_ranges
from autocompress.build.rounding import compensate
from autocompress.errors import CalibrationError
from autocompress.exporters.checked import checked_graph
from autocompress.exporters.onnx_glue import gates, shared_ranges
from autocompress.exporters.onnx_quantize import plan_nodes, quantized_tensors
from autocompress.model.tied import untie
from autocompress.task.calling import call
from autocompress.task.data import portions
from autocompress.task.nested import take
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.moments import MatrixLayer, checked_portions, matrix_layer
from autocompress.techniques.quantize import round_weight

_MOVED = "Inputs with outlier channels, whose scales were moved into the weights: {}."


def calibrate(compressed: Compressed, inputs: Any) -> Compressed:
    """Settle activation ranges, round weights with error compensation, and correct biases.

    Args:
        compressed: after all that changes its weights; its module is not changed.
        inputs: calibration inputs, batch first, or a split that gives them.

    Returns:
        A copy with ranges, the folded module, and its float graph that the export will quantize.

    Raises:
        CalibrationError: inputs are empty, not finite, or do not fit the model.
    """
    two = next(checked_portions(inputs, 2))
    first = take(two, slice(0, 1))
    folded = fold_batch_norms(compressed.module)
    bits = {name: p.weight_bits for name, p in compressed.precisions.items()}
    # biases are corrected, and tied weights rounded, each in its own layer
    untie(folded, lambda name, key: bits.get(name, 32) if key == "weight" else (name, key))
    try:
        with torch.no_grad():
            call(folded, first)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise CalibrationError(f"Calibration inputs do not fit the model: {error}") from error
    notes = compressed.notes
    if compressed.settings.equalization and not compressed.qat:
        moved = equalize(folded, compressed, inputs)
        notes = (*notes, *([_MOVED.format(", ".join(moved))] if moved else []))
    floats = {
        n: folded.get_parameter(f"{n}.weight").detach().clone()
        for n in _correctable(folded, compressed)
    }
    if compressed.settings.weight_rounding != "nearest" and not compressed.qat:
        for name in compensate(folded, compressed, inputs):
            floats.pop(name, None)
    if compressed.settings.bias_correction and not compressed.qat:
        correct_biases(folded, compressed, floats, inputs)
    graph = checked_graph(compressed, folded, two)
    plan = plan_nodes(graph, compressed)
    try:
        ranges = tensor_ranges(
            graph,
            quantized_tensors(graph, plan),
            inputs,
            compressed.settings,
            whole=gates(graph.graph, plan.static),
        )
    except Exception as error:
        if type(error).__module__.startswith("onnxruntime"):
            raise CalibrationError(f"Calibration inputs do not fit the model: {error}") from error
        raise
    ranges = shared_ranges(graph.graph, plan.static, ranges)
    for name, nodes in plan.layers.items():
        tensor = nodes[0].input[0]
        if tensor in ranges:
            ranges[f"{name}:in"] = ranges[tensor]
    return compressed.with_(ranges=ranges, folded=folded, graph=graph, notes=notes)


def _correctable(folded: nn.Module, compressed: Compressed) -> list[str]:
    """Layers with rounded weights and a bias that can make up for them."""
    return [
        name
        for name, precision in compressed.precisions.items()
        if precision.weight_bits <= 8
        and isinstance(folded.get_submodule(name), MatrixLayer)
        and matrix_layer(folded, name).bias is not None
    ]


@torch.no_grad()
def correct_biases(
    folded: nn.Module,
    compressed: Compressed,
    floats: Mapping[str, Tensor],
    inputs: Any,
    *,
    limit: int = 128,
) -> None:
    """Take the mean error that rounded weights leave out of each layer's bias, in place.

    Args:
        folded: batch norms folded; its biases are changed.
        compressed: says to how many bits layers are rounded.
        floats: layer name to its weight before any rounding; these layers are corrected.
        inputs: calibration inputs, or a split; the first ``limit`` are used.

    References:
        Nagel et al., Data-Free Quantization, ICCV 2019, section 4.2 (empirical form).
    """
    handles = []

    def hook(name: str) -> Any:
        precision = compressed.precisions[name]

        def correct(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, MatrixLayer)
            assert layer.bias is not None
            error = floats[name] - round_weight(
                layer.weight, precision.weight_bits, precision.reduced
            )
            if isinstance(layer, nn.Linear):
                mean = args[0].reshape(-1, layer.in_features).mean(0)
                shift = error @ mean
            else:
                dims = [0, *range(2, args[0].dim())]
                mean = args[0].mean(dims)
                per_group = mean.view(layer.groups, -1).repeat_interleave(
                    layer.out_channels // layer.groups, 0
                )
                shift = (error.flatten(2).sum(2) * per_group).sum(1)
            layer.bias.add_(shift)

        return correct

    try:
        for name in floats:
            handles.append(folded.get_submodule(name).register_forward_pre_hook(hook(name)))
        if handles:
            call(folded, next(portions(inputs, limit)))
    finally:
        for handle in handles:
            handle.remove()
