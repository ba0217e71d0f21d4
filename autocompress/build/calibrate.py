"""Calibration: activation ranges, rounding that compensates its errors, corrected biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.build.equalize import equalize
from autocompress.build.ranges import tensor_ranges
from autocompress.build.rounding import compensate
from autocompress.errors import CalibrationError
from autocompress.exporters.checked import checked_graph
from autocompress.exporters.onnx_glue import Wires, multipliers, shared_ranges
from autocompress.exporters.onnx_low_bits import weight_place
from autocompress.exporters.onnx_quantize import NodePlan, plan_nodes, quantized_tensors
from autocompress.model.tied import untie
from autocompress.model.usage import usage
from autocompress.policy.settings import CompressionSettings
from autocompress.task.calling import call
from autocompress.task.data import portions
from autocompress.task.nested import take
from autocompress.techniques.compressed import Compressed, Range, input_key, output_key
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.moments import MatrixLayer, checked_portions, matrix_layer
from autocompress.techniques.quantize import PLAIN, rounded_weight

_MOVED = "Inputs with outlier channels, whose scales were moved into the weights: {}."
_GUESSED = (
    "No calibration sample reaches {}: the range of the integers there is a guess, the widest of "
    "all others. Raise `settings.calibration_images`, or leave these layers in float."
)


class Calibration:
    """What calibration asks of inputs; here of inputs at hand.

    Args:
        inputs: batch first, or a split that gives them.
    """

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs

    def two(self) -> Any:
        """Inputs of two samples, for tracing."""
        return next(checked_portions(self.inputs, 2))

    def equalized(self, folded: nn.Module, compressed: Compressed) -> Sequence[str]:
        """Move scales of outlier channels into weights, in place; the layers where it did."""
        return equalize(folded, compressed, self.inputs)

    def compensated(self, folded: nn.Module, compressed: Compressed) -> set[str]:
        """See ``compensate``."""
        return compensate(folded, compressed, self.inputs)

    def corrected(
        self, folded: nn.Module, compressed: Compressed, floats: Mapping[str, Tensor]
    ) -> None:
        """See ``correct_biases``."""
        correct_biases(folded, compressed, floats, self.inputs)

    def ranges(
        self,
        graph: Any,
        tensors: Collection[str],
        settings: CompressionSettings,
        whole: Collection[str],
    ) -> dict[str, Range]:
        """See ``tensor_ranges``."""
        return tensor_ranges(graph, tensors, self.inputs, settings, whole=whole)


def calibrate(compressed: Compressed, inputs: Any) -> Compressed:
    """Settle activation ranges, round weights with error compensation, and correct biases.

    Args:
        compressed: after all that changes its weights; its module is not changed.
        inputs: calibration inputs, batch first, or a split that gives them; or a ``Calibration``.

    Returns:
        A copy with ranges, the folded module, and its float graph that the export will quantize.

    Raises:
        CalibrationError: inputs are empty, not finite, or do not fit the model.
    """
    asked = inputs if isinstance(inputs, Calibration) else Calibration(inputs)
    two = asked.two()
    first = take(two, slice(0, 1))
    folded = fold_batch_norms(compressed.module)
    grids = {name: (p.weight_bits, p.block) for name, p in compressed.precisions.items()}
    # biases are corrected, and tied weights rounded, each in its own layer
    untie(folded, lambda name, key: grids.get(name, (32, 0)) if key == "weight" else (name, key))
    try:
        with torch.no_grad():
            call(folded, first)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise CalibrationError(f"Calibration inputs do not fit the model: {error}") from error
    notes = compressed.notes
    if compressed.settings.equalization and not compressed.qat:
        moved = asked.equalized(folded, compressed)
        notes = (*notes, *([_MOVED.format(", ".join(moved))] if moved else []))
    floats = {
        n: folded.get_parameter(f"{n}.weight").detach().clone()
        for n in _correctable(folded, compressed)
    }
    if compressed.settings.weight_rounding != "nearest" and not compressed.qat:
        for name in asked.compensated(folded, compressed):
            floats.pop(name, None)
    if compressed.settings.bias_correction and not compressed.qat:
        asked.corrected(folded, compressed, floats)
    graph = checked_graph(compressed, folded, two)
    plan = plan_nodes(graph, compressed)
    tensors = quantized_tensors(graph, plan)
    unclipped = multipliers(graph.graph, plan.static)
    ranges = asked.ranges(graph, tensors, compressed.settings, unclipped)
    if guessed := sorted(set(tensors) - ranges.keys()):
        ranges = {**dict.fromkeys(guessed, _widest(ranges)), **ranges}
        notes = (*notes, _GUESSED.format(", ".join(_readers(plan, guessed))))
    ranges = shared_ranges(graph.graph, plan.static, ranges)
    ranges |= _of_inputs(folded, plan, ranges) | _of_outputs(graph.graph, folded, plan, ranges)
    return compressed.with_(ranges=ranges, folded=folded, graph=graph, notes=notes)


def _widest(ranges: Mapping[str, Range]) -> Range:
    """A range that holds all others."""
    return Range(
        min((found.low for found in ranges.values()), default=-1.0),
        max((found.high for found in ranges.values()), default=1.0),
    )


def _readers(plan: NodePlan, tensors: Collection[str]) -> list[str]:
    """Layers that read tensors, or the tensors where none does by itself."""
    found = [n for n, nodes in plan.layers.items() if any(x.input[0] in tensors for x in nodes)]
    return found or list(tensors)


def _of_inputs(folded: nn.Module, plan: NodePlan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges of what each layer reads, by its name and the number of the call."""
    found = {}
    for name, nodes in plan.layers.items():
        # attentions and recurrent layers are several operators each time they run
        calls = nodes if isinstance(folded.get_submodule(name), PLAIN) else nodes[:1]
        for number, node in enumerate(calls):
            if node.input[0] in ranges:
                found[input_key(name, number)] = ranges[node.input[0]]
    return found


def _of_outputs(
    graph: Any, folded: nn.Module, plan: NodePlan, ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """Ranges of what layers write in integers alone, where others than such layers read it."""
    wires = Wires.of(graph)
    multiplying = {node.name for nodes in plan.layers.values() for node in nodes}
    rounding = multiplying.intersection(plan.static)
    found = {}
    for name, nodes in plan.layers.items():
        for number, node in enumerate(nodes):
            written = wires.rounded(node, plan.static)
            if not written or wires.only_read_by(rounding, written):
                continue
            if _writes_what(folded.get_submodule(name), node, wires):
                found[output_key(name, number)] = ranges[written]
    return found


def _writes_what(layer: nn.Module, node: Any, wires: Wires) -> bool:
    """Whether a node writes what its layer gives, and not what something behind it makes of that.

    The exporter folds norms into convolutions that `fold_batch_norms` leaves, as where a layer has
    another norm at every call.
    """
    weight = wires.value(node.input[weight_place(node)])
    own = getattr(layer, "weight", None)
    if weight is None or not isinstance(own, Tensor) or usage(layer).after:
        return True
    return np.array_equal(weight, own.detach().numpy())


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
        given: Tensor | None = None
        lost: list[Tensor] = []

        def correct(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal given
            assert isinstance(layer, MatrixLayer)
            assert layer.bias is not None
            if not args[0].numel():  # an expert that no sample is sent to
                return
            given = layer.bias.clone() if given is None else given
            error = floats[name] - rounded_weight(layer, precision)
            lost.append(_mean_error(layer, error, args[0]))
            # one bias serves all calls of a layer
            layer.bias.copy_(given + torch.stack(lost).mean(0))

        return correct

    try:
        for name in floats:
            handles.append(folded.get_submodule(name).register_forward_pre_hook(hook(name)))
        if handles:
            call(folded, next(portions(inputs, limit)))
    finally:
        for handle in handles:
            handle.remove()


def _mean_error(layer: MatrixLayer, error: Tensor, inputs: Tensor) -> Tensor:
    """What an error of the weights takes from each output, on average over some inputs."""
    if isinstance(layer, nn.Linear):
        return mean_error(layer, error, inputs.reshape(-1, layer.in_features).mean(0))
    return mean_error(layer, error, inputs.mean([0, *range(2, inputs.dim())]))


def mean_error(layer: MatrixLayer, error: Tensor, mean: Tensor) -> Tensor:
    """What an error of the weights takes from each output on average.

    Args:
        layer: with the weights.
        error: of its weights, in their shape.
        mean: of its inputs, by channel (or feature).
    """
    if isinstance(layer, nn.Linear):
        return error @ mean
    groups = mean.view(layer.groups, -1).repeat_interleave(layer.out_channels // layer.groups, 0)
    return (error.flatten(2).sum(2) * groups).sum(1)
