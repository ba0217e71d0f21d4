"""What clients say together is what all their samples say: bank, ranges, divergences."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rare_networks
import small_federation
import torch
from small_federation import SETTINGS, STUDY, Federation
from small_networks import data as small_data
from small_networks import enliven
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.statistics import Statistics
from autocompress.federated.batch_norms import (
    batch_norm_sums,
    following,
    kept_channels,
    statistics,
)
from autocompress.federated.described import describe, unlike
from autocompress.federated.messages import digest_of
from autocompress.federated.shares import shared_out
from autocompress.model.groups import SlicingPlan, slicing_plan
from autocompress.policy.federation import FederationSection
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.run.study import read_study
from autocompress.task.data import Data, Split


def pooled_bank(federation: Federation, train: Split) -> LayerBank:
    """The bank of samples in one place, all of them."""
    model, inventory = federation.model, federation.inventory
    plan = slicing_plan(model, train.inputs(2), inventory.groups_by_name)
    found = Statistics.of(model, inventory, plan, train, train, 0)
    return LayerBank.of(model, inventory, plan, SETTINGS, found)


@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_the_bank_of_all_clients_is_that_of_all_samples(tmp_path: Path, split: str) -> None:
    federation = Federation(tmp_path, split=split, alpha=0.3)
    bank = federation.server.bank(SETTINGS)
    pooled = pooled_bank(federation, federation.data.train)
    # as many rows as there are: nothing was drawn in either
    assert set(bank.moments) == set(pooled.moments)
    for name, moments in bank.moments.items():
        exact = pooled.moments[name].second
        gap = (moments.second - exact).abs().max() / exact.abs().max()
        assert float(gap) < 1e-5, name
    assert bank.orders == pooled.orders
    policy = Policy({g.name: LayerPolicy(0.5) for g in federation.inventory.channel_groups})
    policy = Policy({n: p for n, p in policy.layers.items() if n in bank.orders})
    mine, theirs = (b.stitch(policy).module.state_dict() for b in (bank, pooled))
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-3, atol=1e-5), name


def test_one_client_alone_has_another_bank(tmp_path: Path) -> None:
    """The comparison above can fail."""
    federation = Federation(tmp_path, split="dirichlet", alpha=0.3)
    pooled, alone = (
        pooled_bank(federation, own.train) for own in (federation.data, federation.parts_of[0])
    )
    gaps = [
        float((alone.moments[n].second - m.second).abs().max() / m.second.abs().max())
        for n, m in pooled.moments.items()
    ]
    assert max(gaps) > 1e-2


def three_unlike_clients(seed: int = 0) -> tuple[nn.Module, Split, list[Split]]:
    """A network with two batch norms, as trained, and samples whose scale tells the client."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    inputs = torch.randn(40, 3, 8, 8) * torch.arange(1, 41).view(-1, 1, 1, 1)
    together = Split(inputs, torch.zeros(40))
    reestimate(module.eval(), together, batch=40)
    parts = [Split(inputs[a:b], torch.zeros(b - a)) for a, b in ((0, 3), (3, 25), (25, 40))]
    return module, together, parts


def added_up(module: nn.Module, original: nn.Module, parts: list[Split]) -> dict[str, Any]:
    kept = kept_channels(original, SlicingPlan({}, {}), {}, {})
    each = [batch_norm_sums(copy.deepcopy(module), original, kept, p, batch=50) for p in parts]
    total = {name: sum(one[name] for one in each) for name in each[0]}
    return statistics(total, original, kept)


def test_a_model_that_is_as_it_was_keeps_its_statistics() -> None:
    """Also where they are not those of the samples, as after training with augmentation."""
    module, _, parts = three_unlike_clients()
    for norm in (module[1], module[4]):
        norm.running_var.mul_(1.7)
        norm.running_mean.add_(0.3)
    for name, (mean, variance) in added_up(module, module, parts).items():
        norm = module.get_submodule(name)
        assert torch.allclose(mean, norm.running_mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(variance, norm.running_var, rtol=1e-4)


def test_statistics_of_the_first_batch_norm_are_those_of_all_samples() -> None:
    module, together, parts = three_unlike_clients()
    other = copy.deepcopy(module)
    nn.init.normal_(other[0].weight)
    mean, variance = added_up(other, module, parts)["1"]
    seen = other[0](together.inputs())
    assert torch.allclose(mean, seen.mean([0, 2, 3]), rtol=1e-3, atol=1e-4)
    assert torch.allclose(variance, seen.transpose(0, 1).flatten(1).var(1), rtol=5e-3)


def test_unlike_clients_do_not_normalize_by_their_own_batches() -> None:
    """Against re-estimation on all samples; what each client re-estimates alone is far off."""
    module, together, parts = three_unlike_clients()
    smaller = copy.deepcopy(module)
    with torch.no_grad():
        smaller[0].weight.mul_(torch.rand_like(smaller[0].weight) + 0.3)
    exact = copy.deepcopy(smaller)
    reestimate(exact, together, batch=40)
    alone = []
    for part in parts:
        own = copy.deepcopy(smaller)
        reestimate(own, part, batch=50)
        alone.append(own[4].running_var)
    shares = torch.tensor([len(p) / 40 for p in parts])
    averaged = (torch.stack(alone) * shares[:, None]).sum(0)
    found = added_up(smaller, module, parts)["4"][1]
    wanted = exact[4].running_var
    gap, usual = ((v / wanted).log().abs().max() for v in (found, averaged))
    assert float(gap) < 0.1
    assert float(usual) > 3 * float(gap)


def test_batch_norms_that_never_run_keep_their_statistics() -> None:
    """As of a head for training only, and of an expert that some clients or all send nothing to."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, _, self.parts = three_unlike_clients()
            self.training_only, self.expert = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
            self.other, self.sign = nn.BatchNorm2d(5), 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layers(x)
            self.expert(x[x.mean((1, 2, 3)) > 1e6])
            self.other(x[x.flatten(1)[:, 0] * self.sign > 0])
            return x

    module = Odd().eval()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.layers[0].weight.mul_(0.5)
    other.sign = -1.0  # which samples it sends to the other expert is another matter
    found = added_up(other, module, module.parts)
    assert set(found) == {"layers.1", "layers.4", "other"}
    assert all(torch.isfinite(part).all() for both in found.values() for part in both)


def test_channels_that_are_left_are_found(tmp_path: Path) -> None:
    federation = Federation(tmp_path, "plain", clients=2)
    pipeline = federation.pipeline()
    policy = Policy({"conv1": LayerPolicy(0.5)})
    gone = pipeline.bank.gone(policy)
    kept = kept_channels(federation.model, pipeline.bank.plan, gone, {})
    assert set(kept["bn1"].tolist()) == set(range(8)) - set(gone["conv1"])
    assert kept["bn2"].tolist() == list(range(12))
    norm = pipeline.stitch(policy).module.bn1
    assert torch.equal(norm.weight, federation.model.bn1.weight[kept["bn1"]])


def test_built_models_do_not_depend_on_how_samples_are_shared_out(tmp_path: Path) -> None:
    """Statistics, bits and ranges: the same file from unlike clients and from a single one."""
    many = Federation(tmp_path / "many", "plain", split="dirichlet", alpha=0.3)
    names = [layer.name for layer in many.inventory.layers]
    policy = Policy(
        {
            n: LayerPolicy(weight_bits=4 if i == 0 else 8, activation_bits=32 if i == 0 else 8)
            for i, n in enumerate(names)
        }
    )
    one = Federation(tmp_path / "one", "plain", clients=1)
    built = [f.pipeline().build(policy) for f in (many, one)]
    first, second = built
    assert first.ranges
    assert second.ranges
    assert set(first.ranges) == set(second.ranges)
    for name, found in first.ranges.items():
        assert found.low == pytest.approx(second.ranges[name].low, rel=1e-3, abs=1e-4), name
        assert found.high == pytest.approx(second.ranges[name].high, rel=1e-3, abs=1e-4), name
    assert first.folded is not None
    assert second.folded is not None
    for name, tensor in first.folded.state_dict().items():
        assert torch.allclose(tensor, second.folded.state_dict()[name], rtol=1e-3, atol=1e-4), name


def test_divergences_add_up(tmp_path: Path) -> None:
    federation = Federation(tmp_path, split="dirichlet", alpha=0.3)
    pipeline = federation.pipeline()
    pipeline.own_statistics = False
    policies = [Policy({g: LayerPolicy(0.75) for g in pipeline.bank.orders}), Policy()]
    args = {**pipeline.common, "policies": [p.as_dict() for p in policies], "share": 1.0}
    found = federation.server.ask("screen", args, blobs=pipeline.blobs)
    count, total, _ = found.sums["divergence"][0]
    assert count == len(federation.data.train)
    with torch.inference_mode():
        inputs = federation.data.train.inputs()
        log_p = federation.model(inputs).log_softmax(-1)
        log_q = pipeline.rough(policies[0])(inputs).log_softmax(-1)
    exact = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert total / count == pytest.approx(float(exact), rel=0.05)  # bfloat16 where it is quick
    assert found.sums["divergence"][1][1] == pytest.approx(0.0, abs=1e-4)


def test_batch_norms_that_follow_are_those_of_the_model_on_all_samples() -> None:
    """Whatever the batch; and what all of a batch shares goes into no gradient, as in training."""
    module, together, parts = three_unlike_clients()
    kept = kept_channels(module, SlicingPlan({}, {}), {}, {})
    inputs = parts[0].inputs()
    for trained in (copy.deepcopy(module).train(), copy.deepcopy(module)):
        with following(trained, module, kept):
            copied = copy.deepcopy(trained)
            for part in (together, *parts):
                wanted = module(part.inputs())
                for found in (trained(part.inputs()), copied(part.inputs())):
                    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
            with torch.no_grad():
                copied[0].bias.add_(3.0)  # which the mean of a batch takes away again
            assert torch.allclose(copied(inputs), module(inputs), atol=1e-3)
            trained(inputs).square().mean().backward()
        shared, own = (float(trained[i].bias.grad.abs().max()) for i in (0, 1))
        assert shared < 1e-5 * own
        assert torch.equal(trained[1].running_mean, module[1].running_mean)
    module(inputs).square().mean().backward()
    shared, own = (float(module[i].bias.grad.abs().max()) for i in (0, 1))
    assert shared > 1e-2 * own


def test_an_expert_of_no_client_keeps_its_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = rare_networks.inputs_of("Experts", 48)
    targets = torch.arange(48) % 3
    split = Split(inputs, targets)
    network = enliven(rare_networks.RARE["Experts"]())
    monkeypatch.setattr(small_federation, "make", lambda name: network)
    monkeypatch.setattr(small_federation, "example", lambda name: inputs[:2])
    monkeypatch.setattr(
        small_federation, "small_data", lambda name: Data(split, split, split, classes=3)
    )
    pipeline = Federation(tmp_path, "experts", clients=3).pipeline()
    bits = LayerPolicy(weight_bits=8, activation_bits=8)
    policy = Policy({layer.name: bits for layer in pipeline.inventory.layers})
    found = pipeline.calibrated(pipeline.stitch(policy))
    assert found.folded is not None
    for name in ("experts.2.0.bias", "experts.2.2.bias"):
        assert torch.equal(found.folded.get_parameter(name), network.get_parameter(name))
    assert all(torch.isfinite(p).all() for p in found.folded.parameters())
    assert any("experts.2.0" in note for note in found.notes)


def test_what_hides_samples_leaves_a_usable_bank(tmp_path: Path) -> None:
    exact = Federation(tmp_path / "exact").server.bank(SETTINGS)
    hidden = Federation(tmp_path / "hidden", epsilon=1e4, without_first_layer=True)
    bank = hidden.server.bank(SETTINGS)
    missing = set(exact.moments) - set(bank.moments)
    assert len(missing) == 1
    (first,) = missing
    assert first == hidden.inventory.layers[0].name
    for moments in bank.moments.values():
        assert float(torch.linalg.eigvalsh(moments.second).min()) > -1e-4
    policy = Policy({next(iter(bank.orders)): LayerPolicy(0.5)})
    module = bank.stitch(policy).module
    assert all(torch.isfinite(t).all() for t in module.state_dict().values())


@pytest.mark.parametrize("section", [{"epsilon": 1e4}, {"without_first_layer": True}])
def test_clients_answer_a_server_that_hides_what_they_hide(
    tmp_path: Path, section: dict[str, Any]
) -> None:
    """No client is left out, from the bank to layers in 4 bits."""
    study = read_study({**STUDY.model_dump(mode="json"), "federation": section})
    federation = Federation(tmp_path, "plain", study=study, clients=3, **section)
    settings = SETTINGS.model_copy(update={"weight_rounding": "gptq"})
    names = [layer.name for layer in federation.inventory.layers]
    policy = Policy({n: LayerPolicy(weight_bits=4) for n in names})
    built = federation.pipeline(settings).build(policy)
    assert built.folded is not None
    rounds = federation.rounds.journal.rounds()
    assert {"moments"} <= {one["kind"] for one in rounds}
    assert [one["left"] for one in rounds] == [{}] * len(rounds)


def test_a_client_with_another_model_or_other_cuts_says_so(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    pipeline = federation.pipeline()
    args = {**pipeline.common, "policies": [], "share": 1.0, "cuts": "other"}
    client = federation.server.own
    with pytest.raises(Exception, match="other channels to cut"):
        client.sums("screen", args, {}, list(pipeline.blobs))
    with pytest.raises(Exception, match="knows no round"):
        client.sums("other", {}, {}, [])


def test_clients_of_unlike_samples_are_named_with_the_reason() -> None:
    def told(inputs: torch.Tensor, targets: Any) -> dict[str, Any]:
        return describe(Data(*(Split(inputs, targets) for _ in range(3))))

    labels, usual = torch.arange(4), torch.zeros(4, 3)
    other = told(torch.zeros(4, 5), labels)
    other["samples"] = 10**9  # the most clients count, not the most samples
    about = {
        0: other,
        1: told(usual, labels),
        2: told(usual, {"a": labels}),
        3: told(usual, labels),
    }
    found = unlike(about)
    assert set(found) == {0, 2}
    assert "((5,), 'float32')" in found[0]
    assert "((3,), 'float32')" in found[0]
    assert "targets are nested" in found[2]
    assert unlike({1: about[1], 3: about[3]}) == {}


def test_a_client_keeps_few_of_the_banks_that_it_was_sent(tmp_path: Path) -> None:
    """Those that were asked for last; what it told with noise is no bank and stays."""
    client = replace(Federation(tmp_path / "other").server.own, folder=tmp_path / "cache")
    blobs = {digest_of(bytes([i])): bytes([i]) for i in range(7)}
    names = list(blobs)
    for place, (name, blob) in enumerate(blobs.items()):
        client.sent.keep({f"blob.{name}": np.frombuffer(blob, np.uint8)}, [name])
        (tmp_path / "cache" / "told_abc.safetensors").touch()
        for kept in (tmp_path / "cache").iterdir():
            os.utime(kept, (kept.stat().st_mtime - 10,) * 2)  # so much time has gone by
        if place >= 2:
            client.sent.keep({}, [names[0]])
    kept = {path.stem for path in (tmp_path / "cache").iterdir()}
    assert kept == {names[0], *names[-3:], "told_abc"}


def test_a_column_makes_the_clients() -> None:
    own = small_data("plain")
    marks = {
        name: [f"s{i % 3}" for i in range(len(getattr(own, name)))]
        for name in ("train", "val", "test")
    }
    section = FederationSection(split="column", column="speaker")
    parts = shared_out(replace(own, extra={"speaker": marks}), section)
    assert len(parts) == 3
    together = torch.cat([part["train"] for part in parts]).sort().values
    assert torch.equal(together, torch.arange(len(own.train)))
    with pytest.raises(Exception, match="no column 'speaker'"):
        shared_out(own, section)


def test_every_sample_has_one_owner() -> None:
    own = small_data("plain")
    for rule in ("iid", "dirichlet"):
        parts = shared_out(own, FederationSection(clients=4, split=rule, alpha=0.3))
        for name in ("train", "val", "test"):
            together = torch.cat([part[name] for part in parts]).sort().values
            assert torch.equal(together, torch.arange(len(getattr(own, name))))
