"""Give a float ``.tflite`` file the precisions of a policy, by ``ai-edge-quantizer``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autocompress.errors import ExportError
from autocompress.exporters.litert_file import Converted, Graph, Operator, float_file, samples
from autocompress.exporters.silence import silent
from autocompress.task.nested import tensors
from autocompress.techniques.compressed import Compressed, Precision, Range, tensors_alone

_MOVING = ("PAD", "PADV2", "TRANSPOSE", "RESHAPE", "SLICE", "STRIDED_SLICE")
"""Operators whose output has the values of their input, and perhaps zeros."""
_IN_FLOAT = ("HARD_SWISH",)
"""XNNPACK computes these in float alone: between integers the slow reference kernel would run."""
_CLOSE = 1e-3
"""Two tensors are the same when they differ by less than this share of their largest value."""


def litert_bytes(compressed: Compressed, example: Any, batch: int) -> bytes:
    """A compressed model as the content of a ``.tflite`` file.

    Args:
        compressed: calibrated, if any layer is quantized with static activations.
        example: inputs of two samples or more, built as the model takes them.
        batch: samples of an inference.

    Raises:
        ExportError: the converter does not take the model, the file does not do what the module
            does, or a layer that is to be quantized is not found in it.
    """
    file = float_file(compressed, example, batch)
    return (
        _quantized(file, compressed, samples(example, batch))
        if compressed.quantized
        else file.content
    )


def _quantized(file: Converted, compressed: Compressed, example: Any) -> bytes:
    """The file with the precisions of its layers."""
    with silent():
        from ai_edge_quantizer import quantizer

    recipe = _Rules(file, compressed, _ranges(file, compressed, example))
    with silent():
        work = quantizer.Quantizer(bytearray(file.content))
        recipe.enter(work)
        made = work.quantize(recipe.statistics(), enable_progress_report=False)
    return bytes(made.quantized_model)


def _ranges(file: Converted, compressed: Compressed, example: Any) -> dict[int, Range]:
    """Ranges of the file's tensors: those of the equal tensors of the graph that was calibrated.

    Merged operators give what the last of them gave, in another order of axes. So tensors are
    compared by their sorted values, on the same input.
    """
    known = tensors_alone(compressed.ranges or {})
    if not known or compressed.graph is None:
        return {}
    held: dict[int, list[tuple[Any, Range]]] = {}
    for name, value in _graph_values(compressed.graph, list(known), tensors(example)).items():
        held.setdefault(value.size, []).append((np.sort(value, axis=None), known[name]))
    found: dict[int, Range] = {}
    for number, value in enumerate(file.run(tensors(example), every=True)):
        if value is None or value.dtype != np.float32 or file.graph.constant(number):
            continue
        own = np.sort(value, axis=None)
        far = _CLOSE * max(float(np.abs(own).max(initial=0.0)), 1e-6)
        equal = [r for other, r in held.get(own.size, ()) if np.abs(other - own).max() < far]
        if equal:
            found[number] = equal[0]
    for each in file.graph.operators:
        if each.op in _MOVING and each.inputs[0] in found:
            found.setdefault(each.outputs[0], found[each.inputs[0]])
        if each.op == "MUL" and each.outputs[0] in found and (factor := _factor(file.graph, each)):
            product = found[each.outputs[0]]
            read = Range(product.low / factor, product.high / factor)
            found.setdefault(each.inputs[0], read)
    return found


def _factor(graph: Graph, each: Operator) -> float:
    """The one positive number that a product multiplies with; 0 for other products.

    A hard sigmoid is a layer clipped to 0 .. 6, and such a product: no tensor of the graph that was
    calibrated is equal to what the layer then gives.
    """
    values = graph.values(each.inputs[1]) if graph.constant(each.inputs[1]) else None
    return max(0.0, float(values[0])) if values is not None and len(values) == 1 else 0.0


def _graph_values(
    graph: Any, names: Sequence[str], parts: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """What some tensors of an ONNX graph hold on an input."""
    import onnx
    import onnxruntime as ort

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    given = {value.name for value in model.graph.input}
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in given | there
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {i.name: p.numpy(force=True) for i, p in zip(session.get_inputs(), parts, strict=True)}
    asked = [name for name in names if name not in feed]
    found = feed | dict(zip(asked, session.run(asked, feed), strict=True))
    return {name: found[name] for name in names}


@dataclass
class _Rules:
    """Which operator of a file is quantized how.

    Args:
        file: float.
        compressed: says what its layers get.
        ranges: of tensors of the file, by number.
    """

    file: Converted
    compressed: Compressed
    ranges: Mapping[int, Range]

    def enter(self, work: Any) -> None:
        """Tell the quantizer.

        Raises:
            ExportError: a layer that is to be quantized has no weight in the file.
        """
        found = set()
        for each in self.file.graph.operators:
            layer = self._layer(self.file.layers[each.name])
            precision = self.compressed.precisions.get(layer, Precision())
            if self.file.graph.weight(each) is None:
                if self._known(each):
                    self._static(work, each)
            elif precision != Precision():
                found.add(layer)
                self._weighted(work, each, precision)
        wanted = {n for n, p in self.compressed.precisions.items() if p != Precision()}
        missing = sorted(wanted - found)
        if missing:
            raise ExportError(
                f"The LiteRT file shows no weight of the layer {missing[0]!r}, which is to be "
                "quantized. Leave it at 32 bits."
            )

    def _layer(self, path: str) -> str:
        """The module with a precision that a module is, or is a part of, as in attention."""
        while path and path not in self.compressed.precisions:
            path = path.rpartition(".")[0]
        return path

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Extremes of tensors by name, as the quantizer's own calibration gives them."""
        main = self.file.graph.main
        return {
            main.tensors[number].name.decode(): {
                end: np.full([1] * len(self.file.graph.kind(number)[1]), value, np.float32)
                for end, value in (("min", own.low), ("max", own.high))
            }
            for number, own in self.ranges.items()
        }

    def _known(self, each: Operator) -> bool:
        """Whether the range of every activation that an operator reads and writes is known."""
        graph = self.file.graph
        numbers = [n for n in (*each.inputs, *each.outputs) if not graph.constant(n)]
        floats = [n for n in numbers if graph.kind(n)[0] == "float"]
        return bool(floats) and all(n in self.ranges for n in floats)

    def _weighted(self, work: Any, each: Operator, precision: Precision) -> None:
        """An operator with a weight of its own."""
        if precision.half:
            self._add(work.add_weight_only_config, each, 16, "float_casting")
        elif not precision.integer:
            self._add(work.add_weight_only_config, each, self._bits(each, precision))
        elif precision.activation_scaling == "static" and self._known(each):
            self._static(work, each)
        else:
            self._add(work.add_dynamic_config, each, self._bits(each, precision))

    @staticmethod
    def _bits(each: Operator, precision: Precision) -> int:
        """Bits that a weight is stored in; a grid of 2 or 3 bits is none of 4 bits."""
        four = each.op in ("CONV_2D", "FULLY_CONNECTED", "EMBEDDING_LOOKUP")
        return 4 if precision.weight_bits == 4 and four else 8

    def _static(self, work: Any, each: Operator) -> None:
        """Integers in, integers out; what the quantizer has no rule for stays in float."""
        operation = _operation(each.op)
        if operation is None or each.op in _IN_FLOAT:
            return
        try:
            work.add_static_config(_only(each), operation, 8, 8)
        except ValueError:
            if self.file.graph.weight(each) is not None:
                raise

    @staticmethod
    def _add(
        add: Any, each: Operator, bits: int, algorithm: str = "min_max_uniform_quantize"
    ) -> None:
        try:
            add(_only(each), _operation(each.op), bits, algorithm_key=algorithm)
        except ValueError as error:
            raise ExportError(
                f"LiteRT has no {each.op} whose weight has {bits} bits: {error}"
            ) from None


def _only(each: Operator) -> str:
    """A pattern for this operator alone: a scope is the names of its outputs, each with a mark."""
    return f"^{re.escape(each.name)};"


def _operation(op: str) -> Any:
    """The quantizer's name of an operator; ``None`` for those that it does not know."""
    from ai_edge_quantizer.qtyping import BuiltinOperator
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import TFL_OP_CODE_TO_NAME

    return TFL_OP_CODE_TO_NAME.get(getattr(BuiltinOperator, op, None))
