"""What every technique keeps to.

In a test file of its own package an author writes::

    class TestMine(TechniqueContract):
        technique = Mine()
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.errors import PolicyError
from autocompress.model.cost import count_macs, layer_cost, policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.shapes import resolver
from autocompress.policy.field import Field
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import named_starts, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Choice, Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.technique import STAGES, Technique
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed

SETTINGS = CompressionSettings(calibration_images=32)


class Network(nn.Module):
    """Convolutions, a depthwise and a pointwise one, a residual block, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 12, 1)
        self.branch = nn.Sequential(nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, 3, 8, 8)`` to ``(batch, 5)``."""
        x = F.relu(self.wide(self.deep(F.relu(self.first(x)))))
        answer: Tensor = self.head((x + self.branch(x)).mean((2, 3)))
        return answer


@cache
def network_bank() -> LayerBank:
    """The bank of the network, with random weights and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, images = Network().eval(), torch.randn(32, 3, 8, 8)
    inventory = take_inventory(model, images[:1])
    split = Split(images, torch.arange(32) % 5)
    return LayerBank.build(model, inventory, split, SETTINGS)


class TechniqueContract:
    """Derive from it and give ``technique``; pytest runs every test on it.

    Attributes:
        technique: under test, installed so that autocompress finds it.
        rule: what a search space says of it; all values of its first field by default.
    """

    technique: ClassVar[Technique]
    rule: ClassVar[Mapping[str, Any] | None] = None

    def counted_bytes(self, weight: Tensor, policy: LayerPolicy) -> int:
        """What a weight of the compressed model takes on disk, counted on its values.

        Args:
            weight: of one module, output channels first.
            policy: of its layer, in which the technique is active.
        """
        return 4 * weight.numel()

    # ---- what the tests stand on

    def space_config(self) -> SpaceConfig:
        """A search space with this technique alone."""
        first = self.technique.fields[0]
        rule = self.rule or {first.name: list(_samples(first))}
        return SpaceConfig.read({"rules": [{"match": "*", **rule}]})

    def choices(self) -> tuple[Space, list[Choice]]:
        """The space on the network, and its choices, which are all of this technique."""
        space = self.space_config().bind(network_bank().inventory)
        assert space.choices
        assert {c.kind for c in space.choices} == {self.technique.knob}
        return space, list(space.choices)

    def policies(self) -> Iterator[Policy]:
        """Every level of every choice alone, then every level everywhere."""
        space, choices = self.choices()
        for place, choice in enumerate(choices):
            for level in range(len(choice.levels)):
                yield space.decode([level if p == place else 0 for p in range(len(choices))])
        for level in range(max(len(c.levels) for c in choices)):
            yield space.decode([min(level, len(c.levels) - 1) for c in choices])

    def built(self, policy: Policy) -> Compressed:
        """The model of a policy."""
        return network_bank().stitch(policy, solve=False)

    # ---- the tests

    def test_it_is_found_and_well_described(self) -> None:
        assert type(self.technique) in map(type, techniques()), "no entry point leads to it"
        assert self.technique.stage in STAGES
        assert self.technique.coupled or self.technique.stage != "channels", "they go together"
        for field in self.technique.fields:
            assert field.allows(field.default)
            json.dumps(field.json_schema())

    def test_defaults_change_nothing(self) -> None:
        values = {field.name: field.default for field in self.technique.fields}
        assert LayerPolicy.from_dict(values) == LayerPolicy()
        assert LayerPolicy.from_dict(values).identity
        assert not self.technique.active(LayerPolicy())
        assert self.technique.words([LayerPolicy()]) == []

    def test_a_wrong_value_is_refused_with_its_name_and_what_it_must_be(self) -> None:
        for field in self.technique.fields:
            for wrong in _wrong(field):
                with pytest.raises(PolicyError) as caught:
                    LayerPolicy.from_dict({field.name: wrong})
                assert f"`{field.name}` must be " in str(caught.value)
                assert repr(wrong) in str(caught.value)

    def test_levels_go_from_mild_to_hard(self) -> None:
        bank = network_bank()
        space, choices = self.choices()
        for place, choice in enumerate(choices):
            assert len({tuple(level) for level in choice.levels}) == 1, "each sets the same fields"
            costs = []
            for level in range(len(choice.levels)):
                policy = space.decode([level if p == place else 0 for p in range(len(choices))])
                cost = policy_cost(bank.inventory, policy, SETTINGS)
                costs.append((cost.macs, cost.size_bytes))
            for mild, hard in pairwise(costs):
                assert hard[0] <= mild[0], f"{choice.name} costs {costs}"
                assert hard[1] <= mild[1], f"{choice.name} costs {costs}"

    def test_a_policy_survives_files_and_pickle(self) -> None:
        space, _ = self.choices()
        for policy in self.policies():
            plain = json.loads(json.dumps(policy.as_dict()))
            for again in (
                Policy.from_dict(plain),
                Policy.read(plain, where="a file"),
                pickle.loads(pickle.dumps(policy)),
            ):
                assert again == policy
                assert hash(again) == hash(policy)
                assert again.digest == policy.digest
            levels = space.encode(policy)
            assert levels is not None
            assert space.decode(levels) == policy

    def test_a_space_is_written_back_as_it_was_read(self) -> None:
        config = self.space_config()
        assert SpaceConfig.read(json.loads(config.model_dump_json())) == config

    def test_without_it_the_model_is_the_same(self) -> None:
        bank = network_bank()
        x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
        with torch.inference_mode():
            assert torch.equal(self.built(Policy()).module(x), bank.model(x))

    def test_the_model_works_and_is_the_same_every_time(self) -> None:
        x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
        for policy in self.policies():
            first, second = self.built(policy), self.built(policy)
            with torch.inference_mode():
                found = first.module(x)
                assert found.shape == (2, 5)
                assert bool(found.isfinite().all())
                assert torch.equal(found, second.module(x))

    def test_shapes_and_costs_are_those_of_the_model(self) -> None:
        bank = network_bank()
        example = torch.zeros(1, 3, 8, 8)
        for policy in self.policies():
            compressed = self.built(policy)
            for shape in resolver(bank.inventory, SETTINGS).layers(policy):
                modules = [
                    compressed.module.get_submodule(part)
                    for part in compressed.parts[shape.layer.name]
                ]
                weights: list[Any] = [module.weight for module in modules]
                assert [w.numel() for w in weights] == [part.weights for part in shape.parts]
                if self.technique.active(shape.policy):
                    counted = sum(self.counted_bytes(w.detach(), shape.policy) for w in weights)
                    bias = 4 * shape.outputs if shape.parts else 0
                    assert layer_cost(shape).size_bytes - bias == counted
            macs = sum(count_macs(compressed.module, example).per_layer.values())
            assert policy_cost(bank.inventory, policy, SETTINGS).macs == macs

    def test_channels_go_as_if_what_reads_them_read_nothing(self) -> None:
        """One at another stage leaves every channel where it is."""
        bank = network_bank()
        x = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)
        went = []
        for policy in self.policies():
            gone = bank.gone(policy)
            if not gone:
                continue
            went.append(gone)
            for name, channels in gone.items():
                group = bank.inventory.groups_by_name[name]
                own = policy[group.producers[0]]
                kept = self.technique.kept(group, own, SETTINGS.channel_multiple)
                assert len(set(channels)) == len(channels) == group.channels - kept
            with torch.no_grad():
                found, wanted = self.built(policy).module(x), _without(bank.model, gone)(x)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert bool(went) is (self.technique.stage == "channels")

    def test_bringing_weights_back_changes_nothing_that_is_allowed(self) -> None:
        for policy in self.policies():
            compressed = self.built(policy)
            before = {n: t.clone() for n, t in compressed.module.state_dict().items()}
            after = network_bank().projected(compressed).module.state_dict()
            assert all(torch.equal(before[n], after[n]) for n in after)

    def test_what_it_does_is_told(self) -> None:
        for policy in self.policies():
            layers = list(policy.layers.values())
            if layers:
                words = self.technique.words(layers)
                assert words, "what a policy does has a name"
                summary = self.technique.summary(layers)
                assert all(math.isfinite(value) for value in summary.values())
                told = self.technique.told({"method": " + ".join(words), **summary})
                assert told
                assert all(told)
                for layer in layers:
                    cell = self.technique.cell(layer)
                    assert bool(cell) is self.technique.active(layer), cell
        assert self.technique.cell(LayerPolicy()) == ""

    def test_a_search_begins_with_what_it_names(self) -> None:
        space, choices = self.choices()
        levels = [level for choice in choices for level in choice.levels]
        for name, values in named_starts(levels).items():
            assert space.uniform(**values) != space.mildest, f"{name!r} changes nothing"

    def test_what_is_tried_and_timed_exists(self) -> None:
        for values in self.technique.probes().values():
            assert self.technique.active(LayerPolicy.from_dict(dict(values)))
        for count in range(1, 7):
            assert set(self.technique.timed_levels(count)) <= set(range(count))


_READERS = {"first": "wide", "branch.0": "branch.2"}
"""Layer of the network to the one that reads its channels; a depthwise one passes them on."""


def _without(model: nn.Module, gone: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy whose readers have no weights for the channels that are gone."""
    masked = copy.deepcopy(model)
    for name, channels in gone.items():
        reader: Any = masked.get_submodule(_READERS[name])
        reader.weight[:, list(channels)] = 0
    return masked


def _samples(field: Field) -> tuple[Any, ...]:
    """Values of a field, the default first."""
    if field.values:
        return field.values
    low, high = field.above or field.at_least or 0, field.below or field.at_most or 1
    some = [low + share * (high - low) for share in (0.25, 0.5, 0.75)]
    return (field.default, *(value for value in some if value != field.default))


def _wrong(field: Field) -> Iterator[Any]:
    """Values that a field may not have."""
    yield "no such value"
    yield math.nan
    if not field.values:
        yield True
        ends = (field.above, field.at_least, field.below, field.at_most)
        finite = [end for end in ends if end is not None]
        yield from (end for end in (field.above, field.below) if end is not None)
        yield min(finite) - 1
        yield max(finite) + 1
