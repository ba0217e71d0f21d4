"""The sequential re-solve and batch-norm re-estimation, against plain least squares and torch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_networks import IMAGE_NETWORKS, data, example, make
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.sequential import sequential_resolve
from autocompress.errors import CalibrationError, UnsupportedModel
from autocompress.model.inventory import take_inventory
from autocompress.model.slicing import remove
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import rows


def pruned(
    name: str, ratio: float = 0.5, ridge: float = 0.01, count: int = 48
) -> tuple[LayerBank, Policy]:
    model, train = make(name), data(name, count).train
    reestimate(model, train.inputs())  # as trained: statistics that fit the data
    settings = CompressionSettings(ridge=ridge)
    inventory = take_inventory(model, example(name))
    bank = LayerBank.build(model, inventory, train, settings)
    groups = [g for g in inventory.channel_groups if not g.residual]
    return bank, Policy({p: LayerPolicy(prune_ratio=ratio) for g in groups for p in g.producers})


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_outputs_come_nearer_than_with_the_bank_alone(name: str) -> None:
    bank, policy = pruned(name)
    inputs = data(name).train.inputs()
    with torch.no_grad():
        real = bank.model(inputs)
        plain = bank.stitch(policy, solve=False).module(inputs)
        solved = sequential_resolve(bank.model, bank.stitch(policy), inputs).module(inputs)
    assert ((solved - real) ** 2).mean() < ((plain - real) ** 2).mean()


def test_the_last_layer_is_the_least_squares_of_numpy() -> None:
    bank, policy = pruned("plain", ridge=1e-9, count=96)
    # rows for 50 times as many unknowns: fewer are damped (tests/build/test_held_out.py)
    inputs = torch.cat([data("plain").train.inputs(), example("plain", 1000, seed=5)])
    small = sequential_resolve(bank.model, bank.stitch(policy), inputs).module
    seen: list[torch.Tensor] = []
    handle = small.fc2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        small(inputs)
        real = bank.model(inputs)
    handle.remove()
    left = torch.cat([seen[0], torch.ones(len(inputs), 1)], 1).double().numpy()
    wanted = left @ np.linalg.lstsq(left, real.double().numpy(), rcond=None)[0]
    with torch.no_grad():
        got = small(inputs).double().numpy()
    error, best = ((got - real.numpy()) ** 2).mean(), ((wanted - real.numpy()) ** 2).mean()
    assert error <= best * (1 + 1e-3)


def test_the_block_output_is_matched_drift_included() -> None:
    bank, policy = pruned("residual")
    inputs = data("residual").train.inputs()
    small = sequential_resolve(bank.model, bank.stitch(policy), inputs).module
    norm, conv = small.norm2, small.conv2
    seen: list[torch.Tensor] = []
    handle = conv.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        small(inputs)
    handle.remove()
    found = rows(conv, seen[0])[0]
    outputs = found @ conv.weight.flatten(1).T
    # the norm's statistics are those of the outputs that it sees
    torch.testing.assert_close(outputs.mean(0), norm.running_mean, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        outputs.var(0, unbiased=False), norm.running_var, rtol=1e-2, atol=1e-3
    )


def test_the_uncompressed_model_is_left_alone() -> None:
    bank, policy = pruned("option_a")
    before = {n: t.clone() for n, t in bank.model.state_dict().items()}
    sequential_resolve(bank.model, bank.stitch(policy), data("option_a").train.inputs())
    for name, value in bank.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nothing_compressed_is_nothing_changed() -> None:
    bank, _ = pruned("residual")
    inputs = data("residual").train.inputs()
    made = sequential_resolve(bank.model, bank.stitch(Policy()), inputs)
    for name, value in made.module.named_parameters():
        assert torch.equal(value, bank.model.get_parameter(name)), name


def test_factorized_layers_are_solved_too() -> None:
    bank, _ = pruned("residual")
    policy = Policy({n: LayerPolicy(rank_ratio=0.4) for n in ("conv1", "conv3", "conv4")})
    inputs = data("residual").train.inputs()
    with torch.no_grad():
        real = bank.model(inputs)
        plain = bank.stitch(policy).module(inputs)
        solved = sequential_resolve(bank.model, bank.stitch(policy), inputs).module(inputs)
    assert ((solved - real) ** 2).mean() < ((plain - real) ** 2).mean()


@pytest.mark.parametrize("inputs", [torch.zeros(0, 3, 8, 8), torch.full((2, 3, 8, 8), torch.nan)])
def test_bad_calibration_data_is_a_clear_error(inputs: torch.Tensor) -> None:
    bank, policy = pruned("plain")
    with pytest.raises(CalibrationError):
        sequential_resolve(bank.model, bank.stitch(policy), inputs)
    with pytest.raises(CalibrationError):
        reestimate(bank.stitch(policy).module, inputs)


class _Branching(nn.Module):
    """Which layer comes first depends on the inputs, if ``swaps``; what is between them, always."""

    def __init__(self, swaps: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.swaps = nn.Linear(6, 6), nn.Linear(6, 6), swaps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = bool(x.sum() > 0)
        first, second = (self.one, self.two) if up or not self.swaps else (self.two, self.one)
        x = first(x)
        return second(torch.relu(x) if up else -x)


def _branching(swaps: bool) -> tuple[nn.Module, torch.Tensor, Compressed]:
    model, inputs = _Branching(swaps).eval(), torch.randn(256, 6).abs()
    inputs[128:] *= -1  # so that the batches do not take the same way
    split = data("lstm").train
    split = type(split)(inputs, torch.zeros(256, dtype=torch.int64))
    bank = LayerBank.build(model, take_inventory(model, inputs), split, CompressionSettings())
    return model, inputs, bank.stitch(Policy({"one": LayerPolicy(rank_ratio=0.4)}))


def test_a_model_that_takes_its_layers_in_any_order_is_a_clear_error() -> None:
    model, inputs, small = _branching(swaps=True)
    before = {n: t.clone() for n, t in small.module.state_dict().items()}
    with pytest.raises(UnsupportedModel, match="bank_batch_norm"):
        sequential_resolve(model, small, inputs)
    assert all(torch.equal(t, before[n]) for n, t in small.module.state_dict().items())


def test_a_model_that_branches_is_solved_on_the_way_that_each_batch_takes() -> None:
    model, inputs, small = _branching(swaps=False)
    solved = sequential_resolve(model, small, inputs).module
    with torch.no_grad():
        first = solved.get_submodule("one")(inputs)
        taken = torch.cat([first[:128].relu(), -first[128:]])
        wanted = torch.cat([model(inputs[:128]), model(inputs[128:])])
        left = torch.cat([taken, torch.ones(256, 1)], 1).double().numpy()
        best = left @ np.linalg.lstsq(left, wanted.double().numpy(), rcond=None)[0]
        got = torch.cat([solved(inputs[:128]), solved(inputs[128:])]).double().numpy()
    error, least = ((got - wanted.numpy()) ** 2).mean(), ((best - wanted.numpy()) ** 2).mean()
    assert error <= least * 1.02  # the ridge holds on to the weights that were there


def test_reestimated_statistics_are_the_averages_over_batches() -> None:
    model, inputs = make("residual"), example("residual", 64)
    reestimate(model, inputs, batch=16)
    seen: list[torch.Tensor] = []
    handle = model.norm1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    batches = seen[0].split(16)
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variance = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm1.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.norm1.running_var, variance, rtol=1e-4, atol=1e-5)
    assert model.norm1.momentum == 0.1
    assert not model.norm1.training


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}])
def test_norms_without_statistics_or_scale_are_solved_around(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6, **options),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 64, 5),
    ).eval()
    split, settings = data("plain").train, CompressionSettings(ridge=0.01)
    inputs = split.inputs()
    bank = LayerBank.build(model, take_inventory(model, inputs[:2]), split, settings)
    policy = Policy({"0": LayerPolicy(prune_ratio=0.5)})
    with torch.no_grad():
        real = model(inputs)
        plain = bank.stitch(policy, solve=False).module(inputs)
        solved = sequential_resolve(model, bank.stitch(policy), inputs).module(inputs)
    assert ((solved - real) ** 2).mean() < ((plain - real) ** 2).mean()


class Corrected(nn.Module):
    """Takes the first channels by number; once half are gone, its forward is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x))[:, :4].mean((2, 3)))


def test_a_forward_that_was_corrected_is_solved_by_its_own_steps() -> None:
    model = Corrected().eval()
    compressed = Compressed(copy.deepcopy(model), Policy(), CompressionSettings(ridge=1e-9))
    compressed.parts = {"conv": ("conv",), "head": ("head",)}
    module = compressed.module
    remove(module, {("conv", "out"): [0, 1], ("head", "in"): [0, 1]})
    module.forward = lambda x: module.head(torch.relu(module.conv(x))[:, :2].mean((2, 3)))
    inputs = example("plain", 64)
    sequential_resolve(model, compressed, inputs)
    with torch.no_grad():
        wanted = model(inputs)
        left = torch.relu(module.conv(inputs))[:, :2].mean((2, 3))
        left = torch.cat([left, torch.ones(64, 1)], 1).double().numpy()
        best = left @ np.linalg.lstsq(left, wanted.double().numpy(), rcond=None)[0]
        assert np.allclose(module(inputs).numpy(), best, atol=1e-4)


def _encoder(norm_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return encoder


def _captured(network: nn.Module, norm_first: bool, inputs: torch.Tensor) -> list[torch.Tensor]:
    """What the last layer's second linear takes and gives, and the stream it is added to."""
    found: dict[str, torch.Tensor] = {}
    last = network.get_submodule("layers.1")
    last.linear2.register_forward_hook(lambda m, a, o: found.update(fed=a[0], made=o))
    last.norm2.register_forward_hook(lambda m, a, o: found.update(into=a[0]))
    with torch.no_grad():
        network(inputs)
    stream = found["into"] if norm_first else found["into"] - found["made"]
    return [found["fed"], found["made"], stream]


@pytest.mark.parametrize("norm_first", [False, True])
def test_attention_and_what_follows_it_are_solved_toward_the_stream(norm_first: bool) -> None:
    """The last layer's MLP ends in the least squares of the original's stream less its own."""
    model, inputs = _encoder(norm_first), torch.randn(96, 6, 16)
    inventory = take_inventory(model, inputs[:2])
    split = data("lstm").train
    split = type(split)(inputs, torch.zeros(96, dtype=torch.int64))
    bank = LayerBank.build(model, inventory, split, CompressionSettings(ridge=1e-9))
    groups = [g for g in inventory.channel_groups if not g.residual]
    policy = Policy({p: LayerPolicy(prune_ratio=0.5) for g in groups for p in g.producers})
    assert any("self_attn" in g.name for g in groups)
    plain = bank.stitch(policy, solve=False).module
    solved = sequential_resolve(model, bank.stitch(policy), inputs).module
    (_, old_out, old_stream), (fed, got, new_stream) = (
        _captured(network, norm_first, inputs) for network in (model, solved)
    )
    wanted = (old_out + old_stream - new_stream).flatten(0, 1).double().numpy()
    left = torch.cat([fed, torch.ones(*fed.shape[:2], 1)], 2).flatten(0, 1).double().numpy()
    best = left @ np.linalg.lstsq(left, wanted, rcond=None)[0]
    error = ((got.flatten(0, 1).double().numpy() - wanted) ** 2).mean()
    assert error <= ((best - wanted) ** 2).mean() * (1 + 1e-3)
    with torch.no_grad():
        far, near = (((network(inputs) - model(inputs)) ** 2).mean() for network in (plain, solved))
    assert near < far
