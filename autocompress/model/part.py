"""One module that runs in a layer's place, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    kind: LayerKind
    inputs: int
    outputs: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1

    @property
    def weights(self) -> int:
        """Values of the weight of a convolution, linear layer or table."""
        return self.inputs // self.groups * self.outputs * prod(self.kernel_size)

    @property
    def macs(self) -> int:
        """Multiply-adds per sample of a convolution or linear layer; none where rows are picked."""
        return 0 if self.kind == "embedding" else self.positions * self.weights

    @property
    def rows(self) -> int:
        """Outputs of the weight, each with a scale of its own in few bits; rows of a table."""
        return self.inputs if self.kind == "embedding" else self.outputs


def whole(layer: LayerSpec, inputs: int, outputs: int) -> Part:
    """A layer in one piece at given widths."""
    groups = inputs if layer.depthwise else layer.conv_groups
    stride = layer.stride or (1,) * len(layer.kernel_size)
    return Part(layer.kind, inputs, outputs, layer.kernel_size, stride, groups, layer.positions)
