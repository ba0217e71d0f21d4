"""What a model consists of, as plain data. ``autocompress.model`` fills it in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from autocompress.errors import InputError, nearest
from autocompress.policy.values import Factorization

OUTSIDE = -1
"""Among ``Inventory.sources``: what no layer gives."""
WHOLE = "*"
"""Stands for all layers where a model's channels cannot be followed."""
RANK_STEPS = 8
"""Factors are chosen for so many rank ratios, evenly spaced up to 1."""

RE_SOLVE = "re-solve"
"""Names the least squares of the reconstruction among the techniques of ``left_alone``."""

_NOTABLE = 0.01
"""Share of a model's weights from which on rows that nothing reads are named."""

LayerKind = Literal[
    "conv", "conv_transpose", "linear", "lstm", "gru", "rnn", "embedding", "attention"
]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer that a policy may touch.

    Args:
        name: dotted module name.
        kind: ``conv`` covers depthwise and grouped ones and 1d/2d/3d, ``conv_transpose`` the same
            transposed; ``lstm``, ``gru`` and ``rnn`` are layers or cells; ``attention`` is a
            ``torch.nn.MultiheadAttention`` or torchvision's window attention, whose channels
            are those of its heads; ``embedding`` has as many input channels as rows.
        in_channels, out_channels: of the weight; of a recurrent layer, input and hidden size, the
            latter of both directions together.
        kernel_size, stride, conv_groups: of a convolution; empty, empty and 1 otherwise.
        positions: per sample, how often the weight is applied: output positions (pixels, tokens,
            steps), and the input positions of a transposed convolution.
        macs: multiply-adds per sample.
        params: number of weights and biases, but for those that an earlier layer holds, too.
        out_group: name of the channel group that this layer's outputs belong to, if prunable.
        depth, directions: of a recurrent layer: how many are stacked, and 2 if bidirectional.
        integer: whether runtimes have kernels for integer activations; else its weights alone
            are kept in fewer bits.
        plain: whether it is its product and nothing else; a subclass that adds something, as
            padding or a norm, keeps that, and is factorized by SVD alone.
        tied_to: name of the earlier layer that holds the same weight.
        holders: of a table that can have factors, and of the layers that hold it too: how many they
            are; each gets the smaller table and a map of its own.
        left_alone: name of a technique and why it is not used on this layer, ``RE_SOLVE`` among
            them.
        sizes: of a convolution, per call: its input's and its output's spatial size.
        factors: of a kernel larger than 1x1, what ``factorization: auto`` stands for at the rank
            ratios 1/8, 2/8, ... 1; empty until the layer bank has compared the errors.
        unread_rows, samples: of a table: rows that the layer bank saw nothing read, in so many
            training samples; 0 samples where it did not look.
        beside, beside_each: parameters that no layer holds and that go with this one: those that go
            with its block only, and how many go with each of its output channels (norms behind
            it; of what goes with a head, its part).
    """

    name: str
    kind: LayerKind
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    conv_groups: int = 1
    positions: int = 1
    macs: int = 0
    params: int = 0
    out_group: str | None = None
    depth: int = 1
    directions: int = 1
    sizes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    factors: tuple[Factorization, ...] = ()
    integer: bool = True
    plain: bool = True
    tied_to: str | None = None
    holders: int = 1
    unread_rows: int = 0
    samples: int = 0
    left_alone: tuple[tuple[str, str], ...] = ()
    beside: int = 0
    beside_each: float = 0

    def why_not(self, technique: str) -> str:
        """Why a technique is not used on this layer; empty where it may be."""
        return dict(self.left_alone).get(technique, "")

    def best_factors(self, rank_ratio: float) -> Factorization:
        """The factors with the least error at the nearest rank ratio that was compared."""
        if not self.factors:
            return "svd"
        return self.factors[max(0, round(rank_ratio * RANK_STEPS) - 1)]

    @property
    def depthwise(self) -> bool:
        """Whether every channel has one filter of its own: then its outputs are its inputs."""
        return 1 < self.conv_groups == self.in_channels == self.out_channels


@dataclass(frozen=True, slots=True)
class LayerTraits:
    """What else a technique should know of a layer, before it says whether it can change it.

    Args:
        class_name: of its module.
        fixed: why its weight cannot be changed by itself; empty where it can.
        indivisible: why two layers cannot stand in its place; empty where they can.
        adjusts: whether it does more to its outputs than adding a bias.
        sums_rows: of a table: whether it sums the rows that it picks.
    """

    class_name: str
    fixed: str = ""
    indivisible: str = ""
    adjusts: bool = False
    sums_rows: bool = False


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that can only be removed together, wherever they occur.

    Args:
        name: name of the group's first producing layer; the key of its prune ratio.
        producers: layers whose output channels these are, in network order.
        consumers: layers that read them, in network order.
        channels: how many channels there are.
        unit: channels are removed in whole multiples of this (a head's width, a group's size).
        residual: whether the channels belong to a residual stream (pruned only when asked).
        spans: per consumer, how many of its input features one channel feeds (more than one
            where a feature map was flattened); on average, where those of a unit feed unlike many.
        narrower: of heads: channels that go when each of them gets narrower by one; 0 where they
            stay as wide as they are.
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    unit: int = 1
    residual: bool = False
    spans: tuple[tuple[str, float], ...] = ()
    narrower: int = 0

    def read_less(self, kept: int, span: float) -> int:
        """Inputs that a reader loses where this many channels are kept; ``span`` is its own."""
        return round((self.channels - kept) * span)

    def kept(self, prune_ratio: float, multiple: int = 1) -> int:
        """Channels that stay at a ratio: rounded to units and multiples, never none.

        Args:
            prune_ratio: fraction removed, in [0, 1).
            multiple: round the count to a multiple of this, where the group is wide enough.
        """
        step = self.unit if multiple <= 1 or multiple % self.unit else multiple
        if step >= self.channels:
            step = self.unit
        if prune_ratio <= 0:
            return self.channels
        return self._rounded(prune_ratio, step)

    def narrowed(self, prune_ratio: float) -> int:
        """Channels that stay where all heads stay and get narrower by this ratio."""
        return self._rounded(prune_ratio, self.narrower)

    def _rounded(self, prune_ratio: float, step: int) -> int:
        wanted = (1.0 - prune_ratio) * self.channels
        return min(self.channels, max(step, int(wanted / step + 0.5) * step))


@dataclass(frozen=True, slots=True)
class Block:
    """Layers that may be left out together, because what they give has the shape of what they read.

    Args:
        name: of its first layer.
        layers: in network order.
        modules: the same and norms, all of which go.
        macs: multiply-adds per sample of its layers.
        passes: whether what comes in is passed on (a recurrent layer of a stack); else it is a
            branch, whose result is added to the stream and which then adds nothing.
    """

    name: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    macs: int
    passes: bool = False


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Channels that cannot be pruned.

    Args:
        group: name of the first layer that makes them; ``WHOLE`` for the whole model.
        reason: why.
        macs: multiply-adds per sample of those of the layers that make them that lose no inputs
            either.
    """

    group: str
    reason: str
    macs: int


@dataclass(frozen=True)
class Inventory:
    """Layers, coupled channel groups and identity of one model.

    Args:
        layers: in the order in which they run.
        channel_groups: the groups that structured pruning may touch, residual ones marked.
        input_shape: shape of one sample, without the batch; one entry per input.
        architecture: digest of the structure (names, kinds, shapes), the same for other weights.
        weights: digest of the weights' values.
        left_alone: channels that cannot be pruned, with the reason.
        blocks: what can be left out, in network order; no layer is in two of them.
        blocks_left_alone: first layer of a branch that cannot, and why.
        sources: for each layer, the places of those whose results it reads through operators that
            are no layers (additions, activations, concatenations); ``OUTSIDE`` is among them where
            it reads an input of the network, or through an operator that computes floats only.
            Empty where nobody could follow the model.
        other_params: parameters that no layer holds and that stay, whatever a policy does.
    """

    layers: tuple[LayerSpec, ...]
    channel_groups: tuple[ChannelGroup, ...]
    input_shape: tuple[tuple[int, ...], ...]
    architecture: str
    weights: str
    left_alone: tuple[LeftAlone, ...] = ()
    blocks: tuple[Block, ...] = ()
    blocks_left_alone: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[int, ...], ...] = ()
    other_params: int = 0

    @property
    def fingerprint(self) -> str:
        """Identity of architecture and weights together."""
        return hashlib.sha256(f"{self.architecture}{self.weights}".encode()).hexdigest()[:16]

    @cached_property
    def by_name(self) -> Mapping[str, LayerSpec]:
        """Layers by their name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def groups_by_name(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by their name."""
        return {group.name: group for group in self.channel_groups}

    @cached_property
    def block_of(self) -> Mapping[str, Block]:
        """Layer name to the block that it lies in, if it lies in any."""
        return {name: block for block in self.blocks for name in block.layers}

    @cached_property
    def tied_places(self) -> Mapping[int, int]:
        """Place of a layer to that of the earlier one which holds the same weight."""
        places = {layer.name: i for i, layer in enumerate(self.layers)}
        tied = ((i, places.get(layer.tied_to or "")) for i, layer in enumerate(self.layers))
        return {i: first for i, first in tied if first is not None}

    @cached_property
    def followers(self) -> Mapping[str, tuple[str, ...]]:
        """Name of the first of several layers that hold one weight to those of the others."""
        found: dict[str, tuple[str, ...]] = {}
        for layer in self.layers:
            if layer.tied_to is not None:
                found[layer.tied_to] = (*found.get(layer.tied_to, ()), layer.name)
        return found

    @cached_property
    def _reads(self) -> Mapping[str, tuple[tuple[ChannelGroup, float], ...]]:
        found: dict[str, tuple[tuple[ChannelGroup, float], ...]] = {}
        for group in self.channel_groups:
            for reader, span in group.spans:
                found[reader] = (*found.get(reader, ()), (group, span))
        return found

    def reads(self, layer: str) -> tuple[tuple[ChannelGroup, float], ...]:
        """The channel groups that a layer reads, several behind a concatenation.

        Returns:
            Each with the number of the layer's inputs that one of its channels feeds.
        """
        return self._reads.get(layer, ())

    def layer(self, name: str) -> LayerSpec:
        """One layer; an unknown name is an error that names the nearest."""
        try:
            return self.by_name[name]
        except KeyError:
            raise InputError(
                f"The model has no layer {name!r}; {nearest(name, self.by_name)}"
            ) from None

    def with_factors(self, factors: Mapping[str, tuple[Factorization, ...]]) -> Inventory:
        """The same model, its layers told which factors suit them best.

        Args:
            factors: layer name to ``LayerSpec.factors``.
        """
        return replace(
            self, layers=tuple(replace(x, factors=factors.get(x.name, ())) for x in self.layers)
        )

    def why_whole(self, layer: str) -> str:
        """Why a layer makes no channels that can be left out; empty where it does."""
        if any(layer in group.producers for group in self.channel_groups):
            return ""
        left = {alone.group: alone.reason for alone in self.left_alone}
        return left.get(layer, left.get(WHOLE, "it makes no channels of its own"))

    def with_unread(self, unread: Mapping[str, tuple[int, int]]) -> Inventory:
        """The same model, its tables told how many of their rows nothing read.

        Args:
            unread: layer name to ``LayerSpec.unread_rows`` and ``samples``.
        """
        each = ((x, *unread.get(x.name, (0, 0))) for x in self.layers)
        return replace(
            self, layers=tuple(replace(x, unread_rows=n, samples=seen) for x, n, seen in each)
        )

    @property
    def never_read(self) -> list[str]:
        """A sentence on each table whose unread rows are a notable share of the model's weights."""
        weights = sum(layer.params for layer in self.layers)
        return [
            f"{x.name}: {x.unread_rows:,} of {x.in_channels:,} rows never occur in {x.samples:,} "
            f"training samples ({4e-6 * x.unread_rows * x.out_channels:.1f} MB)."
            for x in self.layers
            if x.unread_rows * x.out_channels >= max(1, _NOTABLE * weights)
        ]

    @property
    def cannot_prune(self) -> str:
        """The share of the multiply-adds that pruning cannot touch, and why; or an empty text."""
        by_reason: dict[str, list[LeftAlone]] = {}
        for left in self.left_alone:
            if left.macs:
                by_reason.setdefault(left.reason, []).append(left)
        shares = {reason: sum(x.macs for x in found) for reason, found in by_reason.items()}
        if not self.macs or sum(shares.values()) < 0.005 * self.macs:
            return ""
        parts = []
        for reason in sorted(shares, key=lambda reason: -shares[reason]):
            first, *others = (x.group for x in by_reason[reason])
            named = "all layers" if first == WHOLE else first
            more = f" and {len(others)} more" if others else ""
            parts.append(f"{named}{more}: {reason} ({100 * shares[reason] / self.macs:.0f} %)")
        share = 100 * sum(shares.values()) / self.macs
        return f"{share:.0f} % of the multiply-adds cannot be pruned. {'; '.join(parts)}."

    @property
    def macs(self) -> int:
        """Multiply-adds per sample of all listed layers."""
        return sum(layer.macs for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for cache files and ``--json``."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "channel_groups": [asdict(group) for group in self.channel_groups],
            "input_shape": [list(shape) for shape in self.input_shape],
            "architecture": self.architecture,
            "weights": self.weights,
            "left_alone": [asdict(left) for left in self.left_alone],
            "blocks": [asdict(block) for block in self.blocks],
            "blocks_left_alone": dict(self.blocks_left_alone),
        }


def architecture_digest(parts: Any) -> str:
    """Digest of any JSON-able description of a structure, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
