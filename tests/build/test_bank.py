"""Orders, re-solved weights and stitching, each against a plain and slow way to the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import data, example, make
from torch import nn

from autocompress.build import memo
from autocompress.build.bank import LayerBank
from autocompress.errors import CalibrationError, PolicyError
from autocompress.model.inventory import take_inventory
from autocompress.policy.inventory import LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split
from autocompress.task.memory import Memory
from autocompress.techniques.importance import Consumer, l1_scores, obs_order, taylor_scores
from autocompress.techniques.moments import check_inputs, input_moments, resolve, rows

Build = Callable[..., LayerBank]


def correlated(count: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + 0.3


@pytest.mark.parametrize("groups", [1, 2])
def test_rows_times_weights_is_the_convolution(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=groups)
    x = torch.randn(2, 4, 7, 8)
    weight = layer.weight.view(groups, 6 // groups, -1)
    product = rows(layer, x) @ weight.transpose(1, 2)
    wanted = layer(x)
    got = product.permute(0, 2, 1).reshape(6, 2, *wanted.shape[2:]).transpose(0, 1)
    torch.testing.assert_close(got + layer.bias.view(-1, 1, 1), wanted, rtol=1e-4, atol=1e-5)


def test_moments_are_the_mean_outer_products_with_the_mean_in_the_last_row() -> None:
    model, inputs = make("plain"), example("plain", 10)
    seen: list[torch.Tensor] = []
    handle = model.conv2.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    second = input_moments(model, ["conv2"], inputs, chunk=3)["conv2"].second[0]
    handle.remove()
    found = rows(model.conv2, torch.cat(seen))[0].double().numpy()
    np.testing.assert_allclose(second[:-1, :-1], found.T @ found / len(found), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second[-1, :-1], found.mean(0), rtol=1e-4, atol=1e-5)
    assert float(second[-1, -1]) == pytest.approx(1)


@pytest.mark.parametrize("with_bias", [True, False])
def test_resolve_is_the_least_squares_of_numpy(with_bias: bool) -> None:
    x = correlated(400, 7)
    weight = torch.randn(3, 7, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64) if with_bias else None
    kept = torch.tensor([0, 2, 5, 6])
    ones = torch.ones(400, 1, dtype=torch.float64)
    full = torch.cat([x, ones], 1)
    moments = full.T @ full / 400
    solved, shift = resolve(weight, bias, moments, kept, ridge=1e-12)
    left = x[:, kept] if bias is None else torch.cat([x[:, kept], ones], 1)
    goal = x @ weight.T if bias is None else x @ weight.T + bias
    wanted = np.linalg.lstsq(left.numpy(), goal.numpy(), rcond=None)[0].T
    np.testing.assert_allclose(solved, wanted[:, :4], rtol=1e-6, atol=1e-7)
    if bias is None:
        assert shift is None
    else:
        np.testing.assert_allclose(shift, wanted[:, 4], rtol=1e-6, atol=1e-7)


def test_resolve_with_a_ridge_is_least_squares_with_penalty_rows() -> None:
    x, ridge = correlated(300, 5), 0.1
    weight = torch.randn(2, 5, dtype=torch.float64)
    kept = torch.tensor([1, 3, 4])
    moments = torch.zeros(6, 6, dtype=torch.float64)
    moments[:5, :5] = x.T @ x / 300
    solved, _ = resolve(weight, None, moments, kept, ridge)
    root = np.sqrt(ridge * float(moments.diagonal()[:5].mean()) * 300)
    left = np.concatenate([x[:, kept].numpy(), root * np.eye(3)])
    goal = np.concatenate([(x @ weight.T).numpy(), root * weight[:, kept].T.numpy()])
    np.testing.assert_allclose(solved, np.linalg.lstsq(left, goal, rcond=None)[0].T, rtol=1e-8)


def least_error(weight: torch.Tensor, damped: torch.Tensor, kept: list[int]) -> float:
    """Error in the damped moments when the kept features are re-solved, by normal equations."""
    inner = damped[kept][:, kept]
    best = torch.linalg.solve(inner, damped[kept] @ weight.T).T
    rest = weight.clone()
    rest[:, kept] -= best
    return float(torch.einsum("oi,ij,oj->", rest, damped, rest))


def greedy(weight: torch.Tensor, damped: torch.Tensor, blocks: list[list[int]]) -> list[int]:
    left, order = list(range(len(blocks))), []
    while left:
        costs = {
            u: least_error(weight, damped, [i for v in left if v != u for i in blocks[v]])
            for u in left
        }
        order.append(min(costs, key=costs.__getitem__))
        left.remove(order[-1])
    return order


@pytest.mark.parametrize("area", [1, 3])
def test_obs_order_is_the_greedy_order_by_brute_force(area: int) -> None:
    channels, ridge = 6, 0.01
    x = correlated(500, channels * area, seed=area)
    moments = (x.T @ x / 500).float()
    weight = torch.randn(4, channels * area, generator=torch.Generator().manual_seed(5))
    blocks = [list(range(c * area, (c + 1) * area)) for c in range(channels)]
    consumer = Consumer(weight, moments, torch.tensor(blocks), ridge)
    order = obs_order([consumer], [(c,) for c in range(channels)])
    damped = moments.double()
    damped = damped + ridge * damped.diagonal().mean() * torch.eye(len(damped))
    assert order == greedy(weight.double(), damped, blocks)


def test_the_first_obs_removals_are_near_the_best_pair() -> None:
    x = correlated(500, 6, seed=3)
    moments = (x.T @ x / 500).float()
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    blocks = torch.arange(6)[:, None]
    order = obs_order([Consumer(weight, moments, blocks, 1e-6)], [(c,) for c in range(6)])

    def cost(pair: tuple[int, ...]) -> float:
        kept = [i for i in range(6) if i not in pair]
        return least_error(weight.double(), moments.double(), kept)

    ranked = sorted(combinations(range(6), 2), key=cost)
    assert ranked.index(tuple(sorted(order[:2]))) <= 1


def test_l1_is_the_sum_of_absolute_weights_over_all_producers() -> None:
    model = make("residual")
    wanted = [
        float(model.stem.weight[c].abs().sum() + model.conv2.weight[c].abs().sum())
        for c in range(8)
    ]
    np.testing.assert_allclose(l1_scores(model, ["stem", "conv2"], 8), wanted, rtol=1e-5)


def test_l1_of_a_recurrent_unit_sums_its_rows_in_every_gate() -> None:
    cell = make("lstm").cell
    wanted = [
        sum(
            float(w[gate * 8 + unit].abs().sum())
            for w in (cell.weight_ih_l0, cell.weight_hh_l0)
            for gate in range(4)
        )
        for unit in range(8)
    ]
    np.testing.assert_allclose(l1_scores(make("lstm"), ["cell"], 8), wanted, rtol=1e-5)


def test_inputs_that_all_but_vanish_keep_their_weights() -> None:
    """Their squares are 0 in single precision, as behind many layers of fresh weights."""
    samples = torch.full((50, 6), 1e-24)
    inputs = torch.cat([samples, torch.ones(50, 1)], 1)
    moments = (inputs.T @ inputs) / 50
    assert not moments[:6, :6].any()
    assert moments[:6, 6].all()
    weight, bias, kept = torch.randn(3, 6), torch.randn(3), torch.tensor([0, 2, 3, 5])
    solved, shift = resolve(weight, bias, moments, kept, ridge=0.01)
    torch.testing.assert_close(solved, weight[:, kept])
    torch.testing.assert_close(shift, bias)


def test_taylor_is_the_squared_change_to_first_order() -> None:
    model, split = make("plain"), data("plain").train
    inputs, targets = split.inputs(), split.targets
    scores = taylor_scores(model, {"conv1": ["conv1"]}, {"conv1": 8}, split)["conv1"]

    def loss(channel: int, size: float) -> float:
        changed = make("plain").double()
        with torch.no_grad():
            changed.conv1.weight[channel] *= 1 - size
            return float(nn.functional.cross_entropy(changed(inputs.double()), targets))

    slopes = [(loss(c, 1e-5) - loss(c, -1e-5)) / 2e-5 for c in range(8)]
    np.testing.assert_allclose(scores, np.square(slopes), rtol=1e-3, atol=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_taylor_scores_in_little_memory_are_those_of_all_samples_at_once() -> None:
    model, split = make("plain"), data("plain").train.subset(torch.arange(47))
    of = ({"conv1": ["conv1"]}, {"conv1": 8}, split)
    whole, sizes = taylor_scores(model, *of, memory=Memory(10**9)), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    parts = taylor_scores(model, *of, memory=Memory(200_000))
    _, *taken = sizes  # the first call tells how much memory a sample needs
    assert sum(taken) == len(split)
    assert 1 < taken[0] < len(split)
    assert taken[-1] != taken[0]
    torch.testing.assert_close(parts["conv1"], whole["conv1"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["plain", "concat", "grouped", "residual"])
def test_resolved_layers_come_nearer_to_the_original(bank: Build, name: str) -> None:
    found = bank(name)
    inputs = data(name).train.inputs()
    for group in found.inventory.channel_groups:
        if len(group.consumers) != 1 or group.residual:
            continue
        policy = Policy({p: LayerPolicy(prune_ratio=0.5) for p in group.producers})
        errors = []
        for solve in (False, True):
            outputs = []
            for model in (found.model, found.stitch(policy, solve=solve).module):
                seen: list[torch.Tensor] = []
                layer = model.get_submodule(group.consumers[0])
                handle = layer.register_forward_hook(lambda m, a, o, s=seen: s.append(o))
                with torch.no_grad():
                    model(inputs)
                handle.remove()
                outputs.append(seen[0])
            errors.append(float(((outputs[0] - outputs[1]) ** 2).mean()))
        assert errors[1] < errors[0], group.name


def test_stitching_changes_neither_the_bank_nor_the_model(bank: Build) -> None:
    found = bank("residual")
    before = {n: t.clone() for n, t in found.model.state_dict().items()}
    policy = Policy({"conv1": LayerPolicy(prune_ratio=0.5), "conv4": LayerPolicy(rank_ratio=0.5)})
    first = found.stitch(policy).module.state_dict()
    found.stitch(Policy({"conv1": LayerPolicy(prune_ratio=0.75)}))
    second = found.stitch(policy).module.state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    for key, value in found.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_empty_policy_is_the_model(bank: Build) -> None:
    found, inputs = bank("concat"), example("concat")
    with torch.no_grad():
        assert torch.equal(found.stitch(Policy()).module(inputs), found.model(inputs))


def test_solved_weights_in_memory_are_bounded(bank: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("plain")
    inventory = take_inventory(model, example("plain"))
    found = LayerBank.build(model, inventory, data("plain").train, CompressionSettings())
    size = model.conv2.weight.nbytes
    monkeypatch.setattr(memo, "LARGEST_BYTES", 2 * size)
    for count in range(1, 7):
        found.solved("conv2", list(range(count)))
    assert len(found._memo) == 2
    assert found._memo.held_bytes == 2 * size


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2"])
def test_a_layer_is_factorized_once_for_the_same_weights(
    bank: Build, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bits, or what is done to other layers, is nothing new; other inputs and ranks are."""
    from autocompress.techniques import factorize as module

    found, calls = bank("plain"), list[str]()
    real = module.factorize

    def counted(layer: nn.Module, spec: LayerSpec, *rest: Any) -> nn.Sequential:
        calls.append(spec.name)
        return real(layer, spec, *rest)

    monkeypatch.setattr(module, "factorize", counted)

    def stitched(ratio: float, bits: int = 32, before: float = 0.0) -> nn.Module:
        own = LayerPolicy.from_dict(
            {"rank_ratio": ratio, "factorization": method, "weight_bits": bits}
        )
        return found.stitch(Policy({"conv1": LayerPolicy(prune_ratio=before), "conv2": own})).module

    first = stitched(0.37)
    again = stitched(0.37, bits=8)
    assert calls == ["conv2"]
    for part, same in zip(first.conv2, again.conv2, strict=True):
        assert torch.equal(part.weight, same.weight)
        assert part.weight is not same.weight
    for weight in (part.weight for part in first.conv2):
        weight.detach().zero_()
    assert all(part.weight.any() for part in stitched(0.37).conv2)
    stitched(0.41)
    stitched(0.37, before=0.5)
    assert calls == ["conv2"] * 3


def test_a_cached_bank_stitches_the_same(tmp_path: Path) -> None:
    model, splits = make("plain"), data("plain")
    inventory = take_inventory(model, example("plain"))
    settings = CompressionSettings()
    policy = Policy({n: LayerPolicy(prune_ratio=0.5) for n in ("conv1", "conv2", "fc1")})
    steps: list[str] = []
    banks = [
        LayerBank.build(
            model, inventory, splits.train, settings, tmp_path, lambda text, _: steps.append(text)
        )
        for _ in range(2)
    ]
    assert steps.count("input moments") == 1
    one, two = (b.stitch(policy).module.state_dict() for b in banks)
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
    LayerBank.build(
        model, inventory, splits.train, settings.model_copy(update={"ridge": 0.1}), tmp_path
    )
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.zeros(0, 3, 8, 8), "at least one input"),
        (torch.full((2, 3, 8, 8), float("nan")), "finite"),
        (torch.full((2, 3, 8, 8), float("inf")), "finite"),
        (torch.zeros(2, 3, 9, 8), r"shape \(3, 8, 8\)"),
    ],
)
def test_bad_calibration_data_is_a_clear_error(inputs: torch.Tensor, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        check_inputs(inputs, [(3, 8, 8)])
    model = make("plain")
    inventory = take_inventory(model, example("plain"))
    split = Split(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    with pytest.raises(CalibrationError, match=text):
        LayerBank.build(model, inventory, split, CompressionSettings())


def test_a_layer_that_cannot_be_pruned_is_not_pruned_in_silence(
    bank: Callable[..., LayerBank],
) -> None:
    with pytest.raises(PolicyError, match="cannot be used on 'fc2': these are the model's outputs"):
        bank("plain").stitch(Policy({"fc2": LayerPolicy(prune_ratio=0.5)}))
