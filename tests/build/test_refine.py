"""Repair without labels: cut where one value flows, never worse on what it did not train on."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import data, example, make
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.builder import Builder
from autocompress.build.pipeline import Pipeline
from autocompress.build.refine import Refinement
from autocompress.build.segments import Segment, common_segments, reads_inputs, run_segment
from autocompress.build.walk import Steps
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.results.trial import Phase
from autocompress.task.data import Data, Split
from autocompress.task.divergence import SoftmaxKL
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.quantize import QuantizedLayer, simulate

QUICK = RefineConfig(images=256, block_steps=20, steps=30, batch_size=32, lr=3e-3, augment=False)
FINAL = Phase("recover", 0.0, 1)


def pipeline(name: str, count: int = 256, **refine: Any) -> Pipeline:
    model, own = make(name), data(name, count)
    settings = CompressionSettings(
        finish="refine", refine=QUICK.model_copy(update=refine), prune_residual=False
    )
    inventory = take_inventory(model, example(name))
    bank = LayerBank.build(model, inventory, own.train, settings)
    return Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))


class MaskedEncoder(nn.Module):
    """Tokens, of which 0 is padding, through two layers of torch's encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        mask = ids == 0
        tokens = self.encoder(self.words(ids), src_key_padding_mask=mask)
        return self.head((tokens * ~mask[..., None]).sum(1))


def _texts(count: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (count, 7), generator=draws)
    ids[:, 5:] *= torch.randint(0, 2, (count, 2), generator=draws)
    return ids


def half(parts: Pipeline, **more: Any) -> Policy:
    groups = [g for g in parts.inventory.channel_groups if not g.residual]
    layers = {p: LayerPolicy(prune_ratio=0.5, **more) for g in groups for p in g.producers}
    return Policy(layers)


def distance(parts: Pipeline, module: nn.Module, split: Split) -> float:
    with torch.no_grad():
        wanted, found = parts.model(split.inputs()), module(split.inputs())
    return float(SoftmaxKL()(wanted, found).mean())


@pytest.mark.parametrize("name", ["plain", "residual", "unet", "attention"])
def test_blocks_run_one_after_another_are_the_network(name: str) -> None:
    model = MaskedEncoder() if name == "attention" else make(name)
    model.eval()
    inputs = _texts(4) if name == "attention" else example(name, 4)
    steps = Steps(model, [], inputs)
    blocks = common_segments(steps, steps, model)
    assert len(blocks) > 1
    value = None
    with torch.no_grad():
        for block in blocks:
            needed = inputs if reads_inputs(steps, block) else None
            before = None if value is None else value.clone()
            found = run_segment(steps, block, value, needed, model)
            assert value is None or torch.equal(value, before)
            value = found
        *_, output = steps.graph.nodes
        if steps.nodes[blocks[-1].end] is not output.args[0][0]:
            last = Segment(blocks[-1].end, steps.keys[output.args[0][0]])
            value = run_segment(steps, last, value, None, model)
        torch.testing.assert_close(value, model(inputs))


def _ends(model: nn.Module, inputs: Any) -> list[str]:
    steps = Steps(model.eval(), [], inputs)
    return [str(steps.nodes[b.end].target) for b in common_segments(steps, steps, model)]


def test_residual_blocks_are_cut_at_the_stream() -> None:
    ends = _ends(make("residual"), example("residual"))
    # behind the stem, the first block, and the second one, which pools; the head is the rest
    assert [end.split(".")[1] for end in ends] == ["relu", "relu", "mean"]  # aten.NAME.overload


def test_a_mask_of_padding_does_not_keep_an_encoder_in_one_piece() -> None:
    ends = _ends(MaskedEncoder(), _texts(4))
    # the embedding; each layer's attention and MLP, with the norms behind them
    assert [e.rpartition(".")[2] for e in ends if "norm" in e] == ["norm1", "norm2"] * 2, ends


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "grouped", "tokens"])
@pytest.mark.parametrize("bits", [32, 8])
def test_it_comes_nearer_and_changes_only_what_it_may(name: str, bits: int) -> None:
    parts = pipeline(name)
    policy = half(parts, weight_bits=bits, activation_bits=bits)
    before = parts.stitch(policy)
    settings = parts.settings.model_copy(update={"finish": "sequential"})
    solved = replace(parts, settings=settings).build(policy, FINAL)
    refined = parts.build(policy, FINAL)
    unseen = parts.data.test
    far, near = (
        distance(parts, simulate(c) if c.quantized else c.module, unseen) for c in (solved, refined)
    )
    assert near <= 1.05 * far  # other samples than those that decided
    left_out = any("no nearer" in note for note in refined.notes)
    assert refined.qat == (bits == 8 and not left_out)
    shapes = {n: p.shape for n, p in before.module.named_parameters()}
    assert {n: p.shape for n, p in refined.module.named_parameters()} == shapes
    assert not any(isinstance(m, QuantizedLayer) for m in refined.module.modules())
    assert all(not m.training for m in refined.module.modules())


@pytest.mark.parametrize(("weights", "inputs"), [(4, 8), (3, 8), (4, 32), (3, 32)])
@pytest.mark.parametrize("name", ["plain", "tokens"])
def test_few_bits_are_never_worse_for_it(name: str, weights: int, inputs: int) -> None:
    """On its own samples, once both are calibrated, which makes up for more than training does."""
    parts = pipeline(name, block_steps=3, steps=3)
    policy = Policy(
        {
            spec.name: LayerPolicy(weight_bits=weights, activation_bits=inputs)
            for spec in parts.inventory.layers
        }
    )
    settings = parts.settings.model_copy(update={"finish": "sequential"})
    solved = replace(parts, settings=settings).build(policy, FINAL)
    refined = parts.build(policy, FINAL)
    own = parts.data.train
    far, near = (distance(parts, simulate(made), own) for made in (solved, refined))
    assert near <= 1.1 * far


class Volumes(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv3d(2, 8, 3, padding=1), nn.Conv3d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.mean((2, 3, 4)))


@pytest.mark.parametrize("phase", [FINAL, Phase("recover", 1.0, 1)])
def test_volumes_are_trained_like_images(phase: Phase) -> None:
    torch.manual_seed(0)
    model, inputs = Volumes().eval(), torch.randn(64, 2, 4, 6, 6)
    splits = [Split(inputs, torch.arange(64) % 5) for _ in range(3)]
    own, inventory = Data(*splits, classes=5), take_inventory(model, inputs[:1])
    settings = CompressionSettings(finish="refine", refine=QUICK)
    bank = LayerBank.build(model, inventory, own.train, settings)
    schedule = Schedule(device="cpu", batch_size=16)
    parts = Pipeline(model, own, inventory, bank, settings, schedule)
    built = parts.build(Policy({"one": LayerPolicy(prune_ratio=0.5)}), phase)
    assert torch.isfinite(built.module(inputs)).all()


def test_it_is_worth_its_time_and_reads_no_label() -> None:
    """A trained network, pruned by half: much nearer, and the same whatever the labels say."""
    parts = pipeline("residual", 512, images=512, block_steps=60, steps=120)
    policy = half(parts)
    start = parts.reconstruct(parts.stitch(policy), final=False)
    refined = parts.build(policy, FINAL)
    unseen = parts.data.test
    assert distance(parts, refined.module, unseen) < 0.5 * distance(parts, start.module, unseen)
    wrong = replace(parts.data.train, targets=torch.zeros_like(parts.data.train.targets))
    blind = replace(parts, data=Data(wrong, parts.data.val, parts.data.test, classes=5))
    again = blind.build(policy, FINAL)
    for a, b in zip(refined.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_statistics_and_zeros_stay() -> None:
    parts = pipeline("residual")
    policy = Policy({n: LayerPolicy(sparsity=0.5) for n in ("conv1", "conv2", "conv3")})
    stitched = parts.bank.projected(parts.stitch(policy))
    refined = parts.reconstruct(copy.deepcopy(stitched), final=True)
    for name in ("conv1", "conv2", "conv3"):
        old = stitched.module.get_submodule(name).weight
        new = refined.module.get_submodule(name).weight
        assert torch.equal(old == 0, new == 0)
    plain = Compressed(copy.deepcopy(parts.model), Policy(), parts.settings)
    shaken = copy.deepcopy(plain.module)
    with torch.no_grad():
        shaken.get_submodule("conv2").weight.mul_(0.7)
    moved = plain.with_(module=shaken)
    kept = QUICK.model_copy(update={"batch_norms": "kept"})
    found = Refinement(parts.model, moved, parts.data, parts.task, kept).run().module
    for name in ("norm1", "norm2"):
        for kind in ("running_mean", "running_var"):
            was = getattr(shaken.get_submodule(name), kind)
            assert torch.equal(getattr(found.get_submodule(name), kind), was)
    assert distance(parts, found, parts.data.test) < distance(parts, shaken, parts.data.test)


def test_without_time_nothing_gets_worse() -> None:
    parts = pipeline("residual", seconds=1e-6)
    policy = half(parts)
    stitched = parts.reconstruct(parts.stitch(policy), final=False)
    found = Refinement(parts.model, stitched, parts.data, parts.task, parts.settings.refine).run()
    for a, b in zip(stitched.module.parameters(), found.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_is_done_where_nothing_was_changed() -> None:
    parts = pipeline("plain")
    done = parts.build(Policy(), FINAL)
    for a, b in zip(parts.model.parameters(), done.module.parameters(), strict=True):
        assert torch.equal(a, b)


class Branching(nn.Module):
    """Its control flow depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.Linear(8, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        if float(x[0].sum()) < 0:  # of the input: no channel that could be pruned is read
            y = y * 1.2
        return self.head(torch.relu(self.b(y)).mean((2, 3)))


def test_what_takes_several_ways_is_refined_as_a_whole() -> None:
    torch.manual_seed(0)
    model, own = Branching().eval(), data("plain", 256)
    settings = CompressionSettings(finish="refine", refine=QUICK)
    inventory = take_inventory(model, example("plain"))
    bank = LayerBank.build(model, inventory, own.train, settings)
    parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))
    policy = Policy({"a": LayerPolicy(prune_ratio=0.5)})
    start = parts.reconstruct(parts.stitch(policy), final=False)
    assert start.module.get_submodule("a").weight.shape[0] == 4
    refined = parts.build(policy, FINAL)
    assert any("Refined as a whole" in note for note in refined.notes)
    test = own.test
    assert distance(parts, refined.module, test) <= 1.05 * distance(parts, start.module, test)


def test_the_sequential_re_solve_keeps_zeros_and_does_its_best_within_them() -> None:
    parts = pipeline("residual")
    settings = parts.settings.model_copy(update={"finish": "sequential"})
    names = ("conv1", "conv2", "conv3", "conv4")
    policy = Policy({n: LayerPolicy(sparsity=0.6) for n in names})
    stitched = parts.stitch(policy)
    solved = replace(parts, settings=settings).build(policy, FINAL)
    for name in names:
        zero = stitched.module.get_submodule(name).weight == 0
        assert zero.float().mean() > 0.55
        assert torch.equal(zero, solved.module.get_submodule(name).weight == 0)
    unseen = parts.data.test
    assert distance(parts, solved.module, unseen) < distance(parts, stitched.module, unseen)


class Flat(nn.Module):
    """Images through two convolutions and two linear layers, flattened in one of two ways."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d, self.view = nn.Linear(128, 16), nn.Linear(16, 3), view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.a(x)), 2)
        x = torch.relu(self.b(x))
        x = x.view(x.size(0), -1) if self.view else x.flatten(1)
        answer: torch.Tensor = self.d(torch.relu(self.c(x)))
        return answer


def test_a_view_of_images_is_refined_block_by_block_as_flatten_is() -> None:
    """Training holds images channels-last, which ``view`` alone would refuse."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(96, 3, 8, 8, generator=generator), torch.arange(96) % 3
    own = Data(Split(x, y), Split(x[:8], y[:8]), Split(x[8:16], y[8:16]), classes=3)
    settings = CompressionSettings(finish="refine", refine=QUICK)
    found = []
    for view in (True, False):
        model = Flat(view).eval()
        inventory = take_inventory(model, x[:2])
        bank = LayerBank.build(model, inventory, own.train, settings)
        parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu"))
        made = parts.build(half(parts), FINAL)
        assert not [note for note in made.notes if note.startswith("Refined as a whole")]
        found.append(made.module.state_dict())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_what_verifies_takes_the_very_weights_that_were_refined(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = pipeline("residual")
    policy, builder = half(parts, weight_bits=bits), Builder(parts, tmp_path)
    first = builder(policy, FINAL, 3)
    monkeypatch.setattr(Refinement, "run", None)  # a second refinement would raise
    again = builder(policy, Phase("verify", 0.0, 1), 3)
    inputs = parts.data.val.inputs()
    one, two = (simulate(c) if c.quantized else c.module for c in (first, again))
    with torch.no_grad():
        assert torch.equal(one(inputs), two(inputs))
    # what the search asks for is not refined, nor does it take what was
    pairs = zip(builder(policy).module.parameters(), first.module.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_bits_from_8_up_are_not_refined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refinement, "run", None)
    parts = pipeline("residual")
    names = [layer.name for layer in parts.inventory.layers]
    Builder(parts, tmp_path)(Policy(dict.fromkeys(names, LayerPolicy(weight_bits=8))), FINAL)
    assert not list(tmp_path.iterdir())
