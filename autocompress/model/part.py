"""One module that runs in a layer's place, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from autocompress.policy.inventory import LayerKind, LayerSpec


@dataclass(frozen=True, slots=True)
class Part:
    """The layer itself, or one of its factors.

    Args:
        kind: of the layer.
        inputs, outputs: channels; of an attention, those of the stream and those of its heads; of
            an embedding, rows and their width.
        kernel_size, stride: of a convolution; empty otherwise.
        groups: of a convolution.
        positions: output positions per sample; input positions of a transposed convolution.
        depth, directions: of a recurrent layer.
        projected: weights of a recurrent layer that projects its states, beyond those of one that
            does not (fewer, where it is negative).
        scores: multiply-adds per sample of an attention beside its projections.
    """

    kind: LayerKind
    inputs: int
    outputs: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1
    depth: int = 1
    directions: int = 1
    projected: int = 0
    scores: int = 0

    @property
    def weights(self) -> int:
        """Values of all of its weights, biases aside."""
        if self.kind == "attention":  # queries, keys, values, and what joins them
            return 4 * self.inputs * self.outputs
        if self.kind in _GATES:  # a layer above the first reads all directions of the one below
            hidden = self.outputs // self.directions
            above = (self.depth - 1) * (self.outputs + hidden)
            return (
                _GATES[self.kind] * self.outputs * (self.inputs + hidden + above) + self.projected
            )
        return self.inputs // self.groups * self.outputs * prod(self.kernel_size)

    @property
    def macs(self) -> int:
        """Multiply-adds per sample; none where rows are picked."""
        return 0 if self.kind == "embedding" else self.positions * self.weights + self.scores

    @property
    def rows(self) -> int:
        """Outputs of the weight, each with a scale of its own in few bits; rows of a table."""
        return self.inputs if self.kind == "embedding" else self.outputs


_GATES: Mapping[LayerKind, int] = {"lstm": 4, "gru": 3, "rnn": 1}
"""Weights of every unit and input of a recurrent layer."""


def whole(layer: LayerSpec, inputs: int, outputs: int) -> Part:
    """A layer in one piece at given widths."""
    groups = inputs if layer.depthwise else layer.conv_groups
    stride = layer.stride or (1,) * len(layer.kernel_size)
    part = Part(layer.kind, inputs, outputs, layer.kernel_size, stride, groups, layer.positions)
    if layer.kind in _GATES:
        part = replace(part, depth=layer.depth, directions=layer.directions)
        if outputs == layer.out_channels:  # else it projects nothing
            full = replace(part, inputs=layer.in_channels)
            return replace(part, projected=layer.macs // layer.positions - full.weights)
    if layer.kind == "attention":
        macs = layer.macs * outputs // layer.out_channels  # scores shrink with the heads
        return replace(part, scores=macs - part.macs)
    return part


def biases(layer: LayerSpec, outputs: int) -> int:
    """Parameters of a layer beside its weights, where so many outputs are left.

    Of an attention, also the table of relative positions where it has one.
    """
    width = layer.out_channels
    full = 0 if layer.tied_to else whole(layer, layer.in_channels, width).weights
    rest = layer.params - full
    if layer.kind == "attention":
        kept_whole = min(rest, layer.in_channels)  # the output's bias is as wide as the stream
        return kept_whole + (rest - kept_whole) * outputs // width
    if layer.kind in _GATES:
        return rest * outputs // width
    return outputs if layer.kind != "embedding" and rest > 0 else 0
