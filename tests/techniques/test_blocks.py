"""A block that is gone leaves the network that was written without it."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from block_networks import (
    CASES,
    GONE,
    SETTINGS,
    After,
    Heads,
    Scaled,
    Strided,
    answers,
    bank_of,
    mlp,
    without,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import KINDS, SIZE, RandomNetwork
from small_networks import NETWORKS, data, enliven, hook_macs
from small_networks import example as network_example
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.sequential import sequential_resolve
from autocompress.errors import PolicyError
from autocompress.exporters.names import layer_of
from autocompress.exporters.write import export
from autocompress.model.absent import Absent, Nothing
from autocompress.model.cost import policy_cost
from autocompress.model.groups import SlicingPlan
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.trial import Phase
from autocompress.task.data import Split
from autocompress.workloads.models import CifarResNet, seeded

# ---- what is left is the network without the block


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gone", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_it_is_the_network_that_skips_the_block(case: str, gone: tuple[int, ...]) -> None:
    with seeded(1):
        model, inputs, names = CASES[case]()
    bank = bank_of(enliven(model), inputs)
    assert [block.name for block in bank.inventory.blocks] == names
    found = bank.stitch(without(bank.inventory, *(names[i] for i in gone)))
    written: Any = copy.deepcopy(model)
    written[1].without = gone
    torch.testing.assert_close(answers(found.module, inputs), answers(written, inputs))
    held = [m for m in found.module.modules() if isinstance(m, nn.Linear | nn.LSTM | nn.GRU)]
    blocks = [b for b in bank.inventory.blocks if b.name in {names[i] for i in gone}]
    assert len(held) == len(bank.inventory.layers) - sum(len(b.layers) for b in blocks)


class Stack(nn.Module):
    """Recurrent layers one after another, without a way around any of them."""

    def __init__(self, last: str = "outputs") -> None:
        super().__init__()
        self.first = nn.LSTM(3, 8, batch_first=True)
        self.second = nn.GRU(8, 4, batch_first=True, bidirectional=True)
        self.third = nn.LSTM(8, 8, batch_first=True)
        self.head, self.last = nn.Linear(8, 5), last
        self.without: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        if "second" not in self.without:
            x, _ = self.second(x)
        if "third" not in self.without:
            x, (state, _) = self.third(x)
            x = x[:, -1] if self.last == "outputs" else state[-1]
        else:
            x = x[:, -1]
        return self.head(x)


def test_a_recurrent_layer_of_a_stack_passes_on_what_comes_in(tmp_path: Path) -> None:
    with seeded(5):
        model, inputs = enliven(Stack()), torch.randn(4, 6, 3)
    bank = bank_of(model, inputs)
    assert [b.name for b in bank.inventory.blocks] == ["second", "third"]
    for gone in (("second",), ("third",), ("second", "third")):
        found = bank.stitch(without(bank.inventory, *gone))
        written: Any = copy.deepcopy(model)
        written.without = gone
        torch.testing.assert_close(answers(found.module, inputs), answers(written, inputs))
    file = export(found, tmp_path / "m.onnx", inputs)
    assert [n.op_type for n in onnx.load(file.path).graph.node].count("LSTM") == 1


def test_a_layer_whose_states_are_read_stays() -> None:
    model = enliven(Stack("state"))
    inventory = take_inventory(model, torch.randn(2, 6, 3))
    assert [b.name for b in inventory.blocks] == ["second"]
    ((name, reason),) = inventory.blocks_left_alone
    assert name == "third"
    assert "without it, the model" in reason


@pytest.mark.parametrize("branch", [lambda: Heads(8), lambda: mlp(8)])
def test_a_norm_behind_the_addition_stays(branch: Callable[[], nn.Module]) -> None:
    with seeded(2):
        model = nn.Sequential(nn.Linear(3, 8), After(branch(), 8), After(branch(), 8))
        inputs = torch.randn(4, 6, 3)
    bank = bank_of(enliven(model), inputs)
    first, second = bank.inventory.blocks
    assert not {"1.norm", "2.norm"} & {*first.modules, *second.modules}
    written: Any = copy.deepcopy(model)
    written[2].gone = True
    found = bank.stitch(without(bank.inventory, second.name)).module
    torch.testing.assert_close(answers(found, inputs), answers(written, inputs))


def test_torchs_own_encoder_layers() -> None:
    with seeded(3):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
        inputs = torch.randn(4, 6, 3)
    bank = bank_of(enliven(model), inputs)
    assert len(bank.inventory.blocks) == 4
    found = bank.stitch(without(bank.inventory, "1.layers.1.self_attn", "1.layers.0.linear1"))
    whole: Any = model
    one, two = whole[1].layers
    with torch.no_grad():
        x = whole[0](inputs)
        y = one.norm1(x)
        x = x + one.self_attn(y, y, y)[0]
        x = x + two.linear2(F.relu(two.linear1(two.norm2(x))))
        wanted = whole[2](x)
    torch.testing.assert_close(answers(found.module, inputs), wanted)


def test_a_halving_block_keeps_its_projection() -> None:
    with seeded(4):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Strided(8), nn.Conv2d(16, 4, 1))
        inputs = torch.randn(4, 3, 10, 10)
    bank = bank_of(enliven(model), inputs)
    (block,) = bank.inventory.blocks
    assert block.layers == ("1.conv1", "1.conv2")
    assert block.modules == ("1.conv1", "1.norm1", "1.conv2")
    written: Any = copy.deepcopy(model)
    written[1].gone = True
    found = bank.stitch(without(bank.inventory, block.name)).module
    torch.testing.assert_close(answers(found, inputs), answers(written, inputs))


# those without additions in them, of which one operand could go and the other not
PLAIN = sorted(set(KINDS) - {"Tied", "Heads"})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(PLAIN), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    half=st.booleans(),
)
def test_random_networks(kinds: list[str], seed: int, half: bool) -> None:
    torch.manual_seed(seed)
    model = enliven(RandomNetwork(["Residual", *kinds, "Residual"], seed, False))
    inputs = torch.randn(3, 3, SIZE, SIZE)
    inventory = take_inventory(model, inputs[:2])
    assert {"blocks.0.inner", f"blocks.{len(kinds) + 1}.inner"} <= {
        b.name for b in inventory.blocks
    }
    chosen = inventory.blocks[:: 2 if half else 1]
    bank = LayerBank.build(model, inventory, Split(inputs, torch.arange(3)), SETTINGS)
    found = bank.stitch(without(inventory, *(b.name for b in chosen)))
    written = copy.deepcopy(model)
    for block in chosen:
        around = written.get_submodule(block.name.rpartition(".")[0])
        around.forward = types.MethodType(lambda self, x: x, around)
    torch.testing.assert_close(answers(found.module, inputs), answers(written, inputs))


def test_what_comes_of_it_is_left_alone_with_a_reason() -> None:
    class Twice(nn.Module):
        """A layer that runs in a branch and outside of it."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + self.layer(x))

    model = nn.Sequential(nn.Linear(3, 8), Twice(), Scaled(Scaled(mlp(8), 8), 8), nn.Linear(8, 2))
    inventory = take_inventory(model.eval(), torch.randn(2, 3))
    assert [block.name for block in inventory.blocks] == ["2.branch.branch.0"]
    assert inventory.blocks_left_alone == (("1.layer", "1.layer also runs outside of the branch"),)
    bank = bank_of(model, torch.randn(4, 3))
    with pytest.raises(PolicyError, match=r"1.layer also runs outside"):
        bank.stitch(Policy({"1.layer": GONE}))
    with pytest.raises(PolicyError, match=r"lies in no branch"):
        bank.stitch(Policy({"0": GONE}))
    with pytest.raises(PolicyError, match=r"'2.branch.branch.2' is not. Set `block: gone` on 2.b"):
        bank.stitch(Policy({"2.branch.branch.0": GONE}))


# ---- policies and spaces


def test_a_layer_that_is_gone_says_nothing_else() -> None:
    more = LayerPolicy(block="gone", prune_ratio=0.5, weight_bits=8, rank_ratio=0.5)
    assert more == GONE
    assert hash(more) == hash(GONE)
    assert more.as_dict() == {"block": "gone"}
    assert GONE.absent
    assert not GONE.identity
    assert LayerPolicy().as_dict() == {}


def test_a_space_offers_each_block_once() -> None:
    model = CifarResNet(1, (4, 8, 12), classes=5).eval()
    inventory = take_inventory(model, torch.randn(1, 3, 16, 16))
    rule = {"match": "*", "block": ["keep", "gone"], "prune_ratio": [0, 0.5], "weight_bits": 8}
    space = SpaceConfig.read({"prune_residual": True, "rules": [rule]}).bind(inventory)
    blocks = [c for c in space.choices if c.kind == "block"]
    assert [c.layers for c in blocks] == [b.layers for b in inventory.blocks]
    hardest = space.decode(space.hardest)
    assert sum(p.absent for p in hardest.layers.values()) == 6
    assert {n for n, p in hardest.layers.items() if not p.absent} == {"conv1", "linear"}
    again = space.encode(hardest)
    assert again is not None
    assert space.decode(again) == hardest
    same = {
        space.decode([*space.hardest[:i], 0, *space.hardest[i + 1 :]]).digest
        for i, c in enumerate(space.choices)
        if c.layers == ("layer1.0.conv1",)
    }
    assert same == {hardest.digest}
    narrow = SpaceConfig.read({"rules": [{**rule, "exclude": "layer1.0.conv2"}]}).bind(inventory)
    assert "layer1.0.conv1/block" not in narrow.index
    assert space.decode(space.uniform(block="gone")).layers["linear"].weight_bits == 8


def test_costs_are_those_of_what_is_built() -> None:
    with seeded(0):
        model = enliven(CifarResNet(1, (4, 8, 12), classes=5))
    inputs = torch.randn(8, 3, 16, 16)
    bank = bank_of(model, inputs)
    layers = dict(without(bank.inventory, "layer1.0.conv1", "layer3.0.conv1").layers)
    for group in bank.inventory.channel_groups:
        if not group.residual:
            layers |= {p: LayerPolicy(prune_ratio=0.5) for p in group.producers if p not in layers}
    policy = Policy(layers)
    assert policy["layer2.0.conv1"].prune_ratio == 0.5
    found = bank.stitch(policy)
    wanted = policy_cost(bank.inventory, policy, SETTINGS)
    assert wanted.macs == sum(hook_macs(found.module, inputs[:1]).values())
    assert wanted.params == sum(p.numel() for p in found.module.parameters())


def test_a_pruned_stream_and_a_block_that_is_gone() -> None:
    """The first layer that makes the stream may be gone: the others say how wide it is."""
    with seeded(0):
        model: Any = enliven(NETWORKS["residual"]())
    inputs = network_example("residual", 4)
    own = SETTINGS.model_copy(update={"prune_residual": True, "reconstruction": "none"})
    inventory = take_inventory(model, inputs[:1])
    bank = LayerBank.build(model, inventory, Split(inputs, torch.arange(4) % 5), own)
    stream = next(g for g in inventory.channel_groups if "conv4" in g.producers)
    assert stream.producers == ("project", "conv4")
    half = {p: LayerPolicy(prune_ratio=0.5) for p in stream.producers}
    policy = Policy({**half, **without(inventory, "conv3").layers})
    found: Any = bank.stitch(policy, solve=False).module
    assert found.project.out_channels == 8
    written: Any = bank.stitch(Policy(half), solve=False).module
    with torch.no_grad():
        written.conv4.weight.zero_()
        written.conv4.bias.zero_()
    torch.testing.assert_close(answers(found, inputs), answers(written, inputs))


# ---- files, repair, recipes


def network(name: str) -> Pipeline:
    with seeded(0):
        model = enliven(NETWORKS[name]())
    own = data(name, 64)
    refine = RefineConfig(images=64, block_steps=4, steps=4, batch_size=16, augment=False)
    settings_ = CompressionSettings(finish="refine", refine=refine, calibration_images=32)
    inventory = take_inventory(model, network_example(name))
    bank = LayerBank.build(model, inventory, own.train, settings_)
    return Pipeline(model, own, inventory, bank, settings_, Schedule(device="cpu"))


@pytest.mark.parametrize("name", ["residual", "depthwise", "option_a", "tokens"])
def test_the_file_has_no_operator_of_it(name: str, tmp_path: Path) -> None:
    parts = network(name)
    blocks = parts.inventory.blocks
    assert blocks
    policy = Policy({n: GONE for b in blocks for n in b.layers})
    before = export(parts.stitch(Policy()), tmp_path / "before.onnx", network_example(name))
    after = export(parts.stitch(policy), tmp_path / "after.onnx", network_example(name))
    nodes = [onnx.load(file.path).graph.node for file in (before, after)]
    gone = {m for b in blocks for m in b.modules}
    owners = [{found[0] for n in part if (found := layer_of(n.name))} for part in nodes]
    assert owners[0] & gone
    assert not owners[1] & gone
    adds = [sum(n.op_type == "Add" for n in part) for part in nodes]
    assert adds[1] <= adds[0] - len(blocks)
    assert len(nodes[1]) <= len(nodes[0]) - sum(len(b.layers) for b in blocks)


class Masked(nn.Module):
    """A branch that alone reads one of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.branch, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.head(x + self.branch(x) * mask)


def test_a_file_takes_an_input_that_nothing_reads_any_more(tmp_path: Path) -> None:
    model = enliven(Masked())
    inputs = {"mask": torch.rand(4, 8), "x": torch.randn(4, 3)}
    inventory = take_inventory(model, inputs)
    bank = LayerBank(model, inventory, SlicingPlan({}, {}), SETTINGS, {}, {})
    made = bank.stitch(without(inventory, "branch"))
    graph = onnx.load(export(made, tmp_path / "m.onnx", inputs).path).graph
    assert [value.name for value in graph.input] == ["mask", "x"]
    assert [node.op_type for node in graph.node].count("Gemm") == 2


@pytest.mark.parametrize("name", ["residual", "option_a"])
def test_the_next_layers_make_up_for_it(name: str) -> None:
    parts = network(name)
    policy = without(parts.inventory, parts.inventory.blocks[0].name)
    inputs = parts.data.train.inputs()
    wanted = answers(parts.model, inputs)
    stitched = parts.stitch(policy)
    before = float((answers(stitched.module, inputs) - wanted).square().mean())
    solved = sequential_resolve(parts.model, parts.stitch(policy), inputs)
    after = float((answers(solved.module, inputs) - wanted).square().mean())
    assert after < 0.5 * before
    assert not any(n.startswith("No sequential") for n in solved.notes)


def test_a_recipe_gives_the_same_model_again(tmp_path: Path) -> None:
    parts = network("option_a")
    layers = {**without(parts.inventory, parts.inventory.blocks[1].name).layers}
    layers["layer1.0.conv1"] = LayerPolicy(prune_ratio=0.5)
    layers["linear"] = LayerPolicy(weight_bits=8, activation_bits=8)
    policy = Policy(layers)
    again = Policy.from_dict(policy.as_dict())
    assert again.digest == policy.digest
    final = Phase("recover", 0.0, 1)
    one, two = parts.build(policy, final), network("option_a").build(again, final)
    inputs = parts.data.val.inputs()
    assert torch.equal(answers(one.module, inputs), answers(two.module, inputs))
    assert one.quantized
    assert any(isinstance(m, Absent) for m in one.module.modules())


def test_nothing_vanishes_only_where_it_is_zero() -> None:
    zeros = Nothing(torch.zeros(2, 3))
    x = torch.randn(2, 3)
    assert torch.equal(x + zeros, x)
    assert torch.equal(zeros + x, x)
    assert torch.equal(zeros.sigmoid() + x, x + 0.5)
    assert torch.equal(torch.cat([zeros, x]), torch.cat([torch.zeros(2, 3), x]))
    assert isinstance(2 * zeros.view(3, 2).relu() / 3, Nothing)
    assert not isinstance(1 / (zeros + 1), Nothing)
    kept = x
    kept += zeros
    assert kept is x
    assert (x + zeros) is not x
