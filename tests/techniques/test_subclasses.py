"""Layers that add something to torch's own keep it, whatever is done to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from odd_layers import ODD, SamePadding, StaticPadding, WithNorm, odd_inputs, odd_network
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.build.sequential import sequential_resolve
from autocompress.errors import PolicyError
from autocompress.exporters.write import export
from autocompress.model.cost import policy_cost
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.model.splitting import keeper
from autocompress.model.usage import like, usage
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.factorize import factorize
from autocompress.techniques.fold import fold_batch_norms
from autocompress.techniques.moments import rows, solvable
from autocompress.techniques.quantize import simulate

SETTINGS = CompressionSettings(calibration_images=32)


def bank_of(name: str) -> LayerBank:
    model = prepare(odd_network(name)).model
    inputs = odd_inputs(name, 32)
    inventory = take_inventory(model, inputs[:1])
    return LayerBank.build(model, inventory, Split(inputs, torch.arange(32) % 5), SETTINGS)


def same_in_file(made: Compressed, inputs: Tensor, path: Path, near: float) -> None:
    export(made, path, inputs[:1])
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        wanted = (simulate(made) if made.quantized else made.module)(inputs).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=near * np.abs(wanted).max())


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "own",
    [
        LayerPolicy(rank_ratio=0.5),
        LayerPolicy(sparsity=0.5),
        LayerPolicy(weight_bits=8, activation_bits=8),
        LayerPolicy(weight_bits=4),
    ],
    ids=["low-rank", "sparse", "int8", "int4"],
)
def test_every_technique_works_or_says_why_not(name: str, own: LayerPolicy, tmp_path: Path) -> None:
    bank, inputs = bank_of(name), odd_inputs(name, 6)
    spec = bank.inventory.layer("odd")
    asked = "low-rank" if own.rank_ratio else "sparse" if own.sparsity else "quantize"
    if spec.why_not(asked):
        with pytest.raises(PolicyError, match="'odd'"):
            bank.stitch(Policy({"odd": own}))
        return
    made = bank.stitch(Policy({"odd": own}))
    if made.quantized:
        made = calibrate(made, inputs)
    same_in_file(made, inputs, tmp_path / "m.onnx", 0.02 if own.weight_bits == 8 else 1e-3)
    left = sum(p.numel() for n in made.parts["odd"] for p in _own(made.module.get_submodule(n)))
    cost = policy_cost(bank.inventory, Policy({"odd": own}), SETTINGS).params
    # other layers, and what lies outside of layers: all stays as it was
    rest = sum(p.numel() for p in bank.model.parameters()) - spec.params
    assert cost == left + rest


def _own(layer: nn.Module) -> list[Tensor]:
    return [t for t in (layer.weight, layer.bias) if t is not None]


@pytest.mark.parametrize("name", ["same", "static", "with_norm", "renamed"])
def test_factors_of_full_rank_are_the_layer(name: str) -> None:
    bank = bank_of(name)
    spec, layer = bank.inventory.layer("odd"), bank.model.odd
    shape = (len(layer.weight), layer.weight[0].numel())
    edge = shape[0] * shape[1] / sum(shape)
    ratio = min(1.0, (min(shape) - 0.5) / edge)
    inputs = torch.randn(3, 8, 8, 8) if layer.weight.dim() == 4 else torch.randn(3, 8)
    factors = factorize(layer, spec, LayerPolicy(rank_ratio=ratio))
    with torch.no_grad():
        gap = (factors(inputs) - layer(inputs)).abs().mean() / layer(inputs).abs().mean()
        # of rank below full only by what break-even leaves out
        assert float(gap) < 0.75
        assert factors(inputs).shape == layer(inputs).shape


@pytest.mark.parametrize("half", ["first", "last"])
def test_the_half_that_keeps_the_class_is_the_one_that_works(half: str) -> None:
    made = SamePadding("relu", 4, 6, 3, 2) if half == "first" else odd_network("with_norm").odd
    assert keeper(made.eval()) == half
    assert keeper(odd_network("adapter").odd) is None


def test_a_copy_keeps_what_its_class_adds() -> None:
    layer = StaticPadding(4, 6, 3, image_size=8)
    made = like(layer, torch.randn(5, 4, 3, 3), None, out_channels=5)
    assert type(made) is StaticPadding
    assert made.image_size == 8
    assert made.bias is None
    assert made.static_padding is not layer.static_padding
    assert made(torch.randn(1, 4, 8, 8)).shape == (1, 5, 8, 8)
    assert layer.weight.shape == (6, 4, 3, 3)


def test_rows_are_what_the_weight_is_multiplied_with() -> None:
    for layer in (
        SamePadding("relu", 4, 6, 3, 2),
        StaticPadding(4, 6, 3, image_size=8),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 1), padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.Conv1d(4, 6, 3, 2, 1, padding_mode="reflect"),
        nn.Conv3d(4, 6, (1, 3, 2), (1, 2, 1), (0, 1, 1), (1, 2, 1)),
        nn.Conv3d(4, 6, 3, padding=1, groups=2, padding_mode="replicate"),
    ):
        assert solvable(layer)
        sizes = (7, 8, 9)[: layer.weight.dim() - 2]
        inputs = torch.randn(2, 4, *sizes)
        with torch.no_grad():
            wanted = layer(inputs) - layer.bias.view(-1, *[1] * len(sizes))
            found = rows(layer, inputs)
            weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
            products = (found @ weight.transpose(1, 2)).unflatten(1, (2, -1))
        outputs = products.permute(1, 0, 3, 2).reshape(wanted.shape)
        torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-4)


def test_a_norm_is_folded_into_a_subclass_only_where_nothing_lies_between() -> None:
    norm = nn.BatchNorm2d(8)
    norm.running_mean.uniform_(-1, 1)
    inputs = torch.randn(2, 8, 6, 6)
    for layer, folds in (
        (SamePadding("relu", 8, 8, 3), True),
        (WithNorm(8, 8, 3, padding=1, norm=nn.BatchNorm2d(8)), False),
        (nn.ConvTranspose2d(8, 8, 3, groups=2), False),
        (nn.ConvTranspose2d(8, 8, 3), True),
    ):
        model = nn.Sequential(layer, norm).eval()
        folded = fold_batch_norms(model)
        assert isinstance(folded[1], nn.Identity) == folds
        with torch.no_grad():
            torch.testing.assert_close(folded(inputs), model(inputs), rtol=1e-4, atol=1e-5)
        assert type(folded[0]) is type(layer)


@pytest.mark.parametrize("name", ["same", "static"])
def test_layers_behind_cut_channels_are_solved_as_they_run(name: str) -> None:
    bank, inputs = bank_of(name), odd_inputs(name, 32)
    assert "odd" in bank.moments
    policy = Policy({"stem": LayerPolicy(prune_ratio=0.5)})
    with torch.no_grad():
        real = bank.model(inputs)
        plain = bank.stitch(policy, solve=False)
        solved = sequential_resolve(bank.model, bank.stitch(policy), inputs)
    assert solved.module.odd.in_channels == 4
    assert type(solved.module.odd) is type(bank.model.odd)
    with torch.no_grad():
        before, after = (((m(inputs) - real) ** 2).mean() for m in (plain.module, solved.module))
    assert after < before


def test_usage_tells_what_comes_before_and_after() -> None:
    found = {name: usage(odd_network(name).odd) for name in ODD if name != "conv1d"}
    assert found["same"].before
    assert not found["same"].after
    assert found["with_norm"].after
    assert not found["with_norm"].before
    assert found["renamed"].plain
    assert not found["adapter"].direct
    assert not found["standardized"].direct
