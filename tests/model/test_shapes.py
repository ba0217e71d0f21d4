"""The resolver against the tensors of stitched models, under random non-uniform policies."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from masking import same_as_masked
from small_networks import NETWORKS, example, hook_macs, make
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.estimate.latency_features import LayerPlan
from autocompress.model.cost import count_macs, layer_cost, policy_cost
from autocompress.model.groups import channel_groups
from autocompress.model.inventory import take_inventory
from autocompress.model.kernels import part_kernel
from autocompress.model.part import Part
from autocompress.model.shapes import LayerShape, resolver
from autocompress.policy.inventory import ChannelGroup, Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import builtin
from autocompress.policy.settings import CompressionSettings

Build = Callable[..., LayerBank]

POLICIES = 10
"""Per network and rounding: about 500 in all."""
RATIOS = (0, 0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.95)


BITS = [(32, 32)] * 3 + [(8, 8), (8, 32), (4, 32), (16, 16)]
"""Of weights and activations."""
BYTES = {(32, 32): 4, (8, 8): 1, (8, 32): 4, (4, 32): 4, (16, 16): 2}
"""That a weight takes in the runtime: beside float activations it is unpacked."""


def random_policy(inventory: Inventory, draw: random.Random) -> Policy:
    """A ratio of its own for each group, fewer or narrower heads; a rank and factors, bits and
    zeros of its own for some layers; some blocks are gone."""
    groups: dict[str, dict[str, Any]] = {}
    for group in inventory.channel_groups:
        heads = draw.choice(["fewer", "narrower"]) if group.narrower else "fewer"
        own = {"prune_ratio": draw.choice(RATIOS), "heads": heads}
        groups |= dict.fromkeys(group.producers, own)
    gone = {x for block in inventory.blocks if draw.random() < 0.3 for x in block.layers}
    layers = {}
    for layer in inventory.layers:
        factorized = not layer.why_not("low-rank") and draw.random() < 0.3
        weight, activation = draw.choice(BITS) if not layer.why_not("quantize") else (32, 32)
        if activation == 8 and not layer.integer:
            weight, activation = 32, 32
        blocks = (weight, activation) == (4, 32) and layer.kind in ("linear", "attention")
        layers[layer.name] = LayerPolicy(
            **groups.get(layer.name, {}),
            rank_ratio=draw.choice([0.1, 0.5, 1.0]) if factorized else None,
            factorization=draw.choice(["auto", "svd", "spatial", "tucker2"]),
            weight_bits=weight,
            activation_bits=activation,
            weight_block=draw.choice([0, 32, 128]) if blocks else 0,
            sparsity=0 if layer.why_not("sparse") else draw.choice([0, 0, 0.5, 0.9]),
            block="gone" if layer.name in gone else "keep",
        )
    return Policy(layers)


def tensors(module: nn.Module) -> tuple[int, int]:
    """Input and output channels of a module, read off the shapes of its weights."""
    if isinstance(module, nn.LSTM | nn.GRU):
        rows, inputs = module.get_parameter("weight_ih_l0").shape
        gates = 4 if isinstance(module, nn.LSTM) else 3
        return inputs, rows // gates * (1 + module.bidirectional)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.ConvTranspose2d):
        return len(module.weight), module.weight.shape[1] * module.groups
    if isinstance(module, nn.Conv2d):
        return module.weight.shape[1] * module.groups, len(module.weight)
    if isinstance(module, nn.Linear):
        return module.weight.shape[1], len(module.weight)
    # an attention: as wide a stream as ever, and the heads that are left
    (projection,) = (p for n, p in module.named_parameters() if n == "out_proj.weight")
    return projection.shape[0], projection.shape[1]


def check_layer(shape: LayerShape, module: nn.Module, name: str) -> None:
    """A layer's shape is that of the module, or modules, in its place."""
    if not shape.parts:
        assert not [*module.parameters()], name
        return
    parts = [*module.children()] if isinstance(module, nn.Sequential) else [module]
    assert len(parts) == len(shape.parts), name
    assert tensors(parts[0])[0] == shape.inputs, name
    assert tensors(parts[-1])[1] == shape.outputs, name
    beside = [p.numel() for n, p in module.named_parameters() if "weight" not in n]
    assert sum(beside) == shape.biases, name
    for found, part in zip(parts, shape.parts, strict=True):
        assert tensors(found) == (part.inputs, part.outputs), name
        sizes = {n: p.numel() for n, p in found.named_parameters()}
        assert sum(size for n, size in sizes.items() if "weight" in n) == part.weights, name
        if isinstance(found, nn.Conv2d):
            real = (found.kernel_size, found.stride, found.groups)
            assert real == (part.kernel_size, part.stride, part.groups), name
        if isinstance(found, nn.Conv2d | nn.Linear):
            kernel = part_kernel(part, "fp32")
            assert kernel is not None
            assert (kernel.in_channels, kernel.out_channels) == tensors(found), name
            assert (kernel.weights, kernel.macs) == (part.weights, part.macs), name


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_the_stitched_model(name: str, multiple: int, bank: Build) -> None:
    settings = CompressionSettings(prune_residual=True, channel_multiple=multiple)
    found, inputs, draw = bank(name, settings), example(name), random.Random(name)
    plan = LayerPlan(found.inventory, settings)
    for i in range(POLICIES):
        policy = random_policy(found.inventory, draw)
        module = found.stitch(policy, solve=False).module
        shapes = resolver(found.inventory, settings).layers(policy)
        for layer, shape in zip(found.inventory.layers, shapes, strict=True):
            check_layer(shape, module.get_submodule(layer.name), f"{layer.name} {policy}")
        assert plan.weight_bytes(policy) == sum(
            BYTES[s.policy.weight_bits, s.policy.activation_bits] * p.weights
            for s in shapes
            for p in s.parts
            if p.kind in ("conv", "linear")
        )
        if i % 3 == 0:  # running takes longer than comparing
            check_macs(shapes, module, inputs, name)
            cost = policy_cost(found.inventory, policy, settings)
            assert cost.macs == sum(layer_cost(shape).macs for shape in shapes)


def check_macs(
    shapes: tuple[LayerShape, ...], module: nn.Module, inputs: Tensor, name: str
) -> None:
    """Multiply-adds are those that run: as fvcore counts, which sees a repeated layer once."""
    counted = hook_macs(module, inputs)
    fvcore = count_macs(module, inputs).per_layer
    for shape in shapes:
        if shape.layer.kind not in ("conv", "linear"):
            continue
        if not shape.parts:
            assert layer_cost(shape).macs == counted.get(shape.layer.name, 0) == 0
            continue
        own = shape.layer.name
        names = [own] if len(shape.parts) == 1 else [f"{own}.{i}" for i in range(len(shape.parts))]
        assert [counted[n] for n in names] == [part.macs for part in shape.parts], own
        assert layer_cost(shape).macs == sum(counted[n] for n in names), own
        if name != "shared":
            assert layer_cost(shape).macs == sum(fvcore[n] for n in names), own


def test_what_is_drawn_covers_all_that_networks_have(bank: Build) -> None:
    drawn: set[str] = set()
    for name in NETWORKS:
        inventory = bank(name).inventory
        draw = random.Random(name)
        for policy in (random_policy(inventory, draw) for _ in range(POLICIES)):
            for own in policy.layers.values():
                changed = {k for k, v in own.as_dict().items() if v != 0}
                drawn |= changed - {"heads"} if not own.prune_ratio else changed
    assert drawn >= {f.name for t in builtin() for f in t.fields} - {
        "activation_scaling",
        "pattern",
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_are_those_that_policies_leave(name: str) -> None:
    inventory, draw = take_inventory(make(name), example(name)), random.Random(name)
    shapes = resolver(inventory, CompressionSettings(prune_residual=True))

    def counts(group: ChannelGroup) -> list[int]:
        return sorted({group.kept(ratio) for ratio in RATIOS})

    for place, layer in enumerate(inventory.layers):
        groups = {g.name: g for g, _ in inventory.reads(layer.name)}
        if made := inventory.groups_by_name.get(layer.out_group or ""):
            groups[made.name] = made
        every = list(product(RATIOS, repeat=len(groups))) if len(groups) < 3 else []
        met = set()
        for ratios in every or [draw.choices(RATIOS, k=len(groups)) for _ in range(50)]:
            each = zip(groups.values(), ratios, strict=True)
            policy = {x: LayerPolicy(prune_ratio=ratio) for g, ratio in each for x in g.producers}
            shape = shapes.layers(Policy(policy))[place]
            met.add((shape.inputs, shape.outputs))
        widths = shapes.widths(layer.name, counts, 10**6)
        assert met == set(widths) if every else met <= set(widths), layer.name
        few = shapes.widths(layer.name, counts, 3)
        assert set(few) <= set(widths)
        for outputs in {y for _, y in widths} if not layer.depthwise else ():
            near, all_inputs = ([x for x, y in given if y == outputs] for given in (few, widths))
            assert len(near) == min(3, len(all_inputs))
            assert (min(near), max(near)) == (min(all_inputs), max(all_inputs))


def test_two_producers_one_of_them_pruned(bank: Build) -> None:
    """Of 16 + 16 channels 4 go: 28 are read, in the cost, in the kernels and in the tensors."""
    found = bank("nested")
    policy = Policy({"left": LayerPolicy(prune_ratio=0.25)})
    plan = LayerPlan(found.inventory, found.settings)
    kernels = {k.out_channels: k.in_channels for k in plan.kernels([policy]) if k.groups == 1}
    assert kernels[8] == 28  # `third`
    assert kernels[12] == 36  # `point`, behind `third` too
    assert tensors(found.stitch(policy).module.get_submodule("third")) == (28, 8)
    full, pruned = (policy_cost(found.inventory, p, found.settings) for p in (Policy(), policy))
    gone = 4 * 64 * (3 * 9 + 8 + 9) + 4 * 4 * 12 * 9  # left, third, depth; point
    assert full.macs - pruned.macs == gone


def test_the_same_policy_gives_the_same_objects(bank: Build) -> None:
    found = bank("residual")
    one = Policy({"conv1": LayerPolicy(prune_ratio=0.3)})
    shapes = resolver(found.inventory, found.settings)
    first = shapes.layers(one)
    shapes.layers(Policy())
    again = shapes.layers(Policy({"conv1": LayerPolicy(prune_ratio=0.3)}))
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert resolver(found.inventory, found.settings) is shapes
    multiple = CompressionSettings(channel_multiple=4)
    assert resolver(found.inventory, multiple).kept(one)["conv1"] == 4
    assert shapes.kept(one)["conv1"] == 6


def test_a_layer_reads_every_group_behind_a_concatenation() -> None:
    inventory = take_inventory(make("nested"), example("nested"))
    reads = {
        layer.name: [(g.name, span) for g, span in inventory.reads(layer.name)]
        for layer in inventory.layers
    }
    assert reads["third"] == [("left", 1), ("right", 1)]
    assert reads["depth"] == reads["point"] == [("left", 1), ("right", 1), ("third", 1)]
    assert reads["side"] == [("right", 1)]
    assert reads["left"] == []
    assert reads["head"] == [("point", 4), ("side", 4)]


def test_groups_behind_a_concatenation_lose_the_same_places() -> None:
    """Of each of four groups of six one place goes: of the 8 channels before the 16, two or one."""
    model = make("grouped_concat")
    groups, plan = channel_groups(model, example("grouped_concat"))
    left = groups[0]
    assert (left.name, left.producers, left.channels, left.unit) == (
        "left",
        ("left", "right"),
        8,
        4,
    )
    assert [dict(g.spans) for g in groups[:1]] == [{"uneven": 3}]
    same_as_masked(model, plan, example("grouped_concat", 3), 0.5)


class Joined(nn.Module):
    """What is made of two producers' outputs, and perhaps the image, side by side.

    Args:
        reader: of the 24 channels, or of 27 with the image.
        image: whether the image stands before them.
    """

    def __init__(self, reader: nn.Module, image: bool = False) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
        self.reader, self.image = reader, image
        self.head = nn.Conv2d(27 if image else 24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [*([x] if self.image else []), self.left(x), self.right(x)]
        read: Tensor = self.head(self.reader(torch.cat(parts, 1)))
        return read.mean((2, 3))


def test_a_norm_of_groups_behind_a_concatenation_keeps_its_channels() -> None:
    """Its first group holds 12 channels: all of one producer and 4 of the other."""
    groups, plan = channel_groups(Joined(nn.GroupNorm(2, 24)).eval(), example("plain"))
    assert not groups
    assert "cannot be thinned" in plan.skipped["left"]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("count", [24, 6])
def test_layers_with_groups_behind_a_concatenation(kind: type[nn.Module], count: int) -> None:
    model = Joined(kind(24, 24, 1, groups=count)).eval()
    groups, plan = channel_groups(model, example("plain"))
    assert {g.name for g in groups} >= ({"left", "right"} if count == 24 else {"left"})
    same_as_masked(model, plan, example("plain", 3), 0.5)


def test_channels_behind_the_image_are_cut_where_they_stand() -> None:
    model = Joined(nn.ReLU(), image=True).eval()
    groups, plan = channel_groups(model, example("plain"))
    assert [g.name for g in groups] == ["left", "right"]
    (read,) = (m for m in plan.members["left"] if m.module == "head")
    assert read.index == tuple((3 + i,) for i in range(8))
    same_as_masked(model, plan, example("plain", 3), 0.5)


def test_a_part_counts_what_one_multiplies_by_hand() -> None:
    part = Part("conv", 8, 12, (3, 3), (1, 1), groups=4, positions=10)
    assert part.weights == 12 * 2 * 9
    assert part.macs == 10 * part.weights


def test_what_is_told_of_widths_is_what_the_layers_have(bank: Build) -> None:
    """Rounded to a multiple; a depthwise layer is as wide as what it reads."""
    found = bank("depthwise", CompressionSettings(channel_multiple=4))
    free = [group for group in found.inventory.channel_groups if not group.residual]
    own = LayerPolicy(prune_ratio=0.3)
    policy = Policy({name: own for group in free for name in group.producers})
    module = found.stitch(policy, solve=False).module
    told = resolver(found.inventory, found.settings).told(policy)
    widths = {x.name: tensors(module.get_submodule(x.name))[1] for x in found.inventory.layers}
    assert {name: left for name, (left, _) in told.items()} == {n: widths[n] for n in told}
    assert any(left != round(0.7 * whole) for left, whole in told.values())
    assert any(name not in policy.layers for name in told)
    for layer in found.inventory.layers:
        assert layer.name in told or widths[layer.name] == layer.out_channels
