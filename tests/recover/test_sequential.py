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
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.moments import rows
from autocompress.techniques.prune import remove


def pruned(name: str, ratio: float = 0.5, ridge: float = 0.01) -> tuple[LayerBank, Policy]:
    model = make(name)
    reestimate(model, data(name).train.inputs())  # as trained: statistics that fit the data
    settings = CompressionSettings(ridge=ridge)
    inventory = take_inventory(model, example(name))
    bank = LayerBank.build(model, inventory, data(name).train, settings)
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
    bank, policy = pruned("plain", ridge=1e-9)
    inputs = torch.cat([data("plain").train.inputs(), example("plain", 400, seed=5)])
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
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        return self.two(x if x.sum() > 0 else -x)


def test_a_model_that_branches_is_a_clear_error() -> None:
    model, inputs = _Branching().eval(), torch.randn(20, 6)
    inventory = take_inventory(model, inputs)
    split = data("lstm").train
    split = type(split)(inputs, torch.zeros(20, dtype=torch.int64))
    bank = LayerBank.build(model, inventory, split, CompressionSettings())
    with pytest.raises(UnsupportedModel, match="bank_batch_norm"):
        sequential_resolve(model, bank.stitch(Policy({"one": LayerPolicy(weight_bits=4)})), inputs)


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


def test_a_forward_that_was_corrected_is_not_solved_by_the_steps_of_the_old() -> None:
    model = Corrected().eval()
    compressed = Compressed(copy.deepcopy(model), Policy(), CompressionSettings())
    compressed.parts = {"conv": ("conv",), "head": ("head",)}
    module = compressed.module
    remove(module, {("conv", "out"): [0, 1], ("head", "in"): [0, 1]})
    module.forward = lambda x: module.head(torch.relu(module.conv(x))[:, :2].mean((2, 3)))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(UnsupportedModel, match="step of the compressed model fails"):
        sequential_resolve(model, compressed, example("plain", 8))
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
