"""The compressed model on its way through the pipeline: a float module and what is left to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any

import torch
from torch import nn

from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings

_INPUT = ":in"
_OUTPUT = ":out"


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of one module of the compressed network; see ``LayerPolicy`` for their meaning."""

    weight_bits: int = 32
    activation_bits: int = 32
    activation_scaling: str = "static"
    reduced: bool = False
    block: int = 0

    @classmethod
    def of(cls, policy: LayerPolicy, settings: CompressionSettings) -> Precision:
        """The bits that a layer's policy asks for; ``reduced``: its weights keep to 64 levels."""
        reduced = settings.weight_range == "reduced" and policy.integer
        return cls(
            policy.weight_bits,
            policy.activation_bits,
            policy.activation_scaling,
            reduced,
            policy.weight_block,
        )

    @property
    def integer(self) -> bool:
        """Whether arithmetic runs on integers."""
        return self.activation_bits == 8

    @property
    def half(self) -> bool:
        """Whether the layer runs in half precision."""
        return self.weight_bits == 16


@dataclass(frozen=True, slots=True)
class Range:
    """Range of one tensor before quantization; includes zero."""

    low: float
    high: float


def input_key(layer: str, call: int = 0) -> str:
    """What the range of a layer's input is called among those of tensors.

    Args:
        layer: name of the module.
        call: number of the call, of a layer that runs several times.
    """
    return f"{layer}{_INPUT}#{call}" if call else f"{layer}{_INPUT}"


def output_key(layer: str, call: int = 0) -> str:
    """What the range of a layer's output is called, where it is rounded; as ``input_key``."""
    return f"{layer}{_OUTPUT}#{call}" if call else f"{layer}{_OUTPUT}"


def input_ranges(ranges: Mapping[str, Range], layer: str) -> tuple[Range, ...]:
    """Ranges of what a layer reads, call by call, as far as they are known."""
    keys = takewhile(ranges.__contains__, (input_key(layer, call) for call in count(1)))
    return tuple(ranges[key] for key in (input_key(layer), *keys) if key in ranges)


def output_ranges(ranges: Mapping[str, Range], layer: str) -> tuple[Range | None, ...]:
    """Ranges of what a layer gives, for each of its inputs' ranges; empty where none is rounded."""
    calls = range(len(input_ranges(ranges, layer)))
    found = tuple(ranges.get(output_key(layer, call)) for call in calls)
    return found if any(found) else ()


def tensors_alone(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of tensors of a graph, without those of what layers read and give."""
    sides = (_INPUT, _OUTPUT)
    return {key: own for key, own in ranges.items() if not key.split("#")[0].endswith(sides)}


@dataclass
class Compressed:
    """A float module, physically smaller, with the precisions that quantization will give it.

    Args:
        module: in eval mode, on the CPU; pruned, factorized, sparse; weights still float32.
        policy: what was asked for.
        precisions: module name in ``module`` (the parts of a factorized layer have their own
            names) to its bits; modules left out stay float32.
        settings: how it was done.
        ranges: tensor name, or ``input_key`` of a layer, to activation range, filled in by
            ``calibrate``; ``None`` before.
        parts: original layer name to the names of the modules that replaced it.
        notes: remarks for the report, e.g. a rank that was clipped.
        qat: whether the weights were trained through their rounding. They are then rounded to
            nearest, as they were in training, and no bias is corrected.
        folded: what calibration made of the module: batch norms folded, weights rounded with
            error compensation, biases corrected.
        graph: the float ONNX graph of ``folded``, which the ranges belong to.
        dynamic: input name to its free axes beside the batch, each by its own name.
        architecture: of the uncompressed model, see ``Inventory``; empty where nobody said.
    """

    module: nn.Module
    policy: Policy
    settings: CompressionSettings
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    ranges: Mapping[str, Range] | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    qat: bool = False
    folded: nn.Module | None = None
    graph: Any = None
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    architecture: str = ""

    @property
    def quantized(self) -> bool:
        """Whether any module is to be quantized."""
        return any(p != Precision() for p in self.precisions.values())

    @property
    def half_type(self) -> torch.dtype:
        """Element type of layers in 16 bits."""
        return torch.float16 if self.settings.half_format == "float16" else torch.bfloat16

    def with_weights(self, module: nn.Module, *, qat: bool) -> Compressed:
        """A copy with a trained module, which calibration has not seen."""
        return replace(self, module=module, qat=qat, ranges=None, folded=None, graph=None)

    def with_(self, **changes: Any) -> Compressed:
        """A copy with some fields replaced; the module is shared unless replaced."""
        return replace(self, **changes)
