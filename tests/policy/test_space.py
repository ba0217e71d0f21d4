"""Spaces: binding on an inventory, levels, decode and encode."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.space_config import SpaceConfig


def inventory() -> Inventory:
    layers = (
        LayerSpec("stem", "conv", 3, 16, (3, 3), (1, 1), out_group="stem"),
        LayerSpec("block.conv1", "conv", 16, 24, (3, 3), (1, 1), out_group="block.conv1"),
        LayerSpec("block.conv2", "conv", 24, 16, (3, 3), (1, 1), out_group="stem"),
        LayerSpec("head", "linear", 16, 10),
    )
    groups = (
        ChannelGroup("stem", ("stem", "block.conv2"), ("block.conv1", "head"), 16, residual=True),
        ChannelGroup("block.conv1", ("block.conv1",), ("block.conv2",), 24),
    )
    return Inventory(layers, groups, ((3, 8, 8),), "arch", "weights")


JOINT = {
    "rules": [
        {
            "match": "*",
            "weight_only": True,
            "prune_ratio": [0, 0.25, 0.5],
            "weight_bits": [32, 8],
            "activation_bits": [32, 8],
        },
        {"match": "head", "rank_ratio": [None, 0.5], "weight_bits": [32, 4]},
    ]
}


def test_choices_follow_rules_groups_and_valid_bit_pairs() -> None:
    space = SpaceConfig.read(JOINT).bind(inventory())
    levels = {c.name: [tuple(level.values()) for level in c.levels] for c in space.choices}
    pairs = [(32, 32, "static"), (8, 32, "static"), (8, 8, "static")]
    assert levels == {
        "block.conv1/prune_ratio": [(0.0,), (0.25,), (0.5,)],
        "stem/bits": pairs,
        "block.conv1/bits": pairs,
        "block.conv2/bits": pairs,
        "head/bits": [(32, 32, "static"), (4, 32, "static")],
        "head/rank_ratio": [(None, None), (0.5, None)],
    }


def test_blocks_are_levels_of_weights_alone_in_matrices() -> None:
    rule = {
        "weight_only": True,
        "weight_bits": [32, 8, 4],
        "activation_bits": [32, 8],
        "weight_block": [0, 32, 16],
    }
    space = SpaceConfig.read({"rules": [rule]}).bind(inventory())
    levels = {c.name: [tuple(level.values()) for level in c.levels] for c in space.choices}
    bits = [(32, 32), (8, 32), (8, 8), (4, 32), (4, 8)]
    assert levels["stem/bits"] == [(*pair, "static") for pair in bits]
    assert levels["head/bits"] == [
        (*pair, "static", block)
        for pair in bits
        for block in ([16, 32, 0] if pair == (4, 32) else [0])
    ]
    asked = space.decode(space.uniform(weight_bits=4, weight_block=32))
    assert asked["head"] == LayerPolicy(weight_bits=4, weight_block=32)
    assert asked["stem"] == LayerPolicy(weight_bits=4)
    assert space.encode(asked) is not None


def test_residual_groups_only_when_asked() -> None:
    asked = SpaceConfig.read({**JOINT, "prune_residual": True}).bind(inventory())
    # head is ruled without prune ratios, but it only consumes the stem's channels
    assert "stem/prune_ratio" in asked.index
    choice = asked.choices[asked.index["stem/prune_ratio"]]
    assert choice.layers == ("stem", "block.conv2")


def test_ratios_that_keep_equally_many_channels_are_one_level() -> None:
    config = SpaceConfig.read({"rules": [{"prune_ratio": [0, 0.01, 0.5, 0.51, 0.99]}]})
    (choice,) = config.bind(inventory(), channel_multiple=8).choices
    kept = [inventory().channel_groups[1].kept(level["prune_ratio"], 8) for level in choice.levels]
    assert kept == sorted(set(kept), reverse=True) == [24, 16, 8]


@given(st.data())
def test_encode_inverts_decode(data: st.DataObject) -> None:
    space = SpaceConfig.read({**JOINT, "distill": [False, True]}).bind(inventory())
    levels = tuple(data.draw(st.integers(0, len(c.levels) - 1)) for c in space.choices)
    assert space.encode(space.decode(levels)) == levels


@given(st.data())
def test_decoding_sets_what_each_level_says(data: st.DataObject) -> None:
    """Against setting the levels one after another on fresh policies; some decoded before."""
    space = SpaceConfig.read({**JOINT, "distill": [False, True]}).bind(inventory())
    for _ in range(3):
        levels = [data.draw(st.integers(0, len(c.levels) - 1)) for c in space.choices]
        expected: dict[str, LayerPolicy] = {}
        for choice, level in zip(space.choices, levels, strict=True):
            for name in choice.layers:
                before = expected.get(name, LayerPolicy())
                expected[name] = dataclasses.replace(before, **choice.levels[level])
        found = space.decode(levels)
        assert found.layers == {n: p for n, p in expected.items() if not p.identity}
        assert (found.distill is not None) == bool(levels[space.index["distill"]])
        assert Policy.from_dict(found.as_dict()).digest == found.digest
    with pytest.raises(ValueError, match="levels for"):
        space.decode(levels[:-1])


def test_different_assignments_are_different_policies() -> None:
    space = SpaceConfig.read(JOINT).bind(inventory())
    every = list(itertools.product(*(range(len(c.levels)) for c in space.choices)))
    assert len({space.decode(a).digest for a in every}) == len(every)
    assert len(every) == round(10**space.log10_size)


def test_a_policy_outside_the_space_has_no_encoding() -> None:
    space = SpaceConfig.read(JOINT).bind(inventory())
    assert space.encode(Policy({"head": LayerPolicy(weight_bits=2)})) is None
    assert space.encode(Policy({"stem": LayerPolicy(sparsity=0.5)})) is None


def test_uniform_takes_the_nearest_level() -> None:
    space = SpaceConfig.read(JOINT).bind(inventory())
    policy = space.decode(space.uniform(prune_ratio=0.45, weight_bits=8, activation_bits=8))
    assert policy["block.conv1"] == LayerPolicy(0.5, weight_bits=8, activation_bits=8)
    assert policy["head"].weight_bits == 4
    with pytest.raises(InputError, match="prune_ratio"):
        space.uniform(prune_ration=0.5)
    with pytest.raises(InputError, match=r"Nothing can be chosen for 'sparsity'.*`profile`"):
        space.uniform(sparsity=0.5)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"rules": [{"match": "blok.*"}]}, "block.conv1"),
        ({"rules": [{"prune_ratios": [0.5]}]}, "prune_ratio"),
        ({"rulez": []}, "rules"),
        ({"rules": [{"prune_ratio": [0.0]}]}, "nothing to choose"),
    ],
)
def test_bad_spaces_name_the_remedy(data: dict[str, object], names: str) -> None:
    with pytest.raises(InputError, match=names):
        SpaceConfig.read(data).bind(inventory())


@given(
    st.integers(1, 600),
    st.floats(0, 0.999),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 4, 8]),
)
def test_kept_channels_are_whole_units_and_never_none(
    units: int, ratio: float, unit: int, multiple: int
) -> None:
    group = ChannelGroup("g", ("g",), (), units * unit, unit)
    kept = group.kept(ratio, multiple)
    assert 1 <= kept <= group.channels
    assert kept % unit == 0
    if multiple < group.channels and multiple % unit == 0 and kept < group.channels:
        assert kept % multiple == 0


def test_random_policies_reach_every_level_but_no_student() -> None:
    config = {**JOINT, "distill": [False, True], "students": ["small", "tiny"]}
    space = SpaceConfig.read(config).bind(inventory())
    source = random.Random(0)
    drawn = [space.draw(source) for _ in range(200)]
    reached = {c.name: {levels[i] for levels in drawn} for i, c in enumerate(space.choices)}
    every = {c.name: set(range(len(c.levels))) for c in space.choices}
    assert reached == {**every, "student": {0}}
    assert all(space.decode(levels).student is None for levels in (*drawn, space.hardest))
    assert space.decode(space.hardest).layers
    for choice in space.choices:
        assert choice.of_layers == bool(choice.layers)
    assert space.student_place == space.index["student"]
