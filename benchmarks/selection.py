"""Other ways to choose which channels go, beside the greedy order by the readers' error.

The same share of the inner channels of every block goes (ResNet-20), of every layer (VGG-16-BN), or
of every MLP (MiniLM); nothing is trained and no label is read. Ways to choose:

* ``greedy``: as the layer bank does, one channel after another by the error of what reads it;
* ``swaps``: then, at the width asked for, a kept channel is exchanged for one that went while
  that lowers the error (the local search of OSSCAR, Meng et al., ICML 2024);
* ``fisher``: greedy, each output's error weighted by the Fisher information of that output;
* ``folding``: k-means of the channels' own weights; each cluster becomes its centre, what reads it
  sums up the cluster's columns (Wang et al., Forget the Data and Fine-Tuning, ICLR 2025).

Each is scored right after stitching and after the sequential re-solve. Data and weights are found
through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.

    python benchmarks/selection.py --json [--quick] [--network resnet20] [--keep 0.5 0.25]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.sequential import sequential_resolve
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.task.data import Data
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.importance import Consumer, obs_order
from autocompress.techniques.moments import matrix_layer
from autocompress.workloads.data import image_folder
from autocompress.workloads.minilm import minilm_spam, spam
from autocompress.workloads.models import load_weights, resnet20, resnet56, vgg16_bn

NETWORKS = ("resnet20", "resnet56", "vgg16", "minilm")
MODELS = {
    "resnet20": (resnet20, "resnet20"),
    "resnet56": (resnet56, "resnet56"),
    "vgg16": (vgg16_bn, "vgg16_bn"),
}
"""Factory, and what the file of weights is called after."""
WAYS = ("greedy", "swaps", "fisher", "folding")

Orders = dict[str, list[int]]


def loaded(name: str) -> tuple[nn.Module, Data]:
    """A trained network in eval mode, and its data."""
    root = os.environ["AUTOCOMPRESS_DATA"]
    if name == "minilm":
        return minilm_spam(root, texts=2000).eval(), spam(root, val_limit=1000)
    factory, stem = MODELS[name]
    model: nn.Module = factory()
    weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / f"{stem}_cifar10.safetensors"
    load_weights(model, str(weights))
    return model.eval(), image_folder(str(Path(root) / "cifar10"))


class Reader:
    """The one layer that reads a group, in double precision.

    Args:
        bank: holds the second moments of its inputs.
        group: of channels.
    """

    def __init__(self, bank: LayerBank, group: str) -> None:
        members = bank.plan.members[group]
        (self.member,) = [m for m in members if m.side == "in"]
        self.name = self.member.module
        layer = matrix_layer(bank.model, self.name)
        self.area = layer.weight[0, 0].numel()
        self.weight = layer.weight.detach().flatten(1).double()
        moments = bank.moments[self.name].second[0, :-1, :-1].double()
        damping = bank.settings.ridge * moments.diagonal().mean() + 1e-12
        self.moments = moments
        self.damped = moments + damping * torch.eye(len(moments), dtype=torch.float64)
        self.blocks = torch.tensor([self.features(unit) for unit in bank.plan.units[group]])

    def features(self, unit: Sequence[int]) -> list[int]:
        """Inputs of the layer that go with a unit."""
        read = sorted(i for c in unit for i in self.member.index[c])
        return [i * self.area + k for i in read for k in range(self.area)]


def groups_of(bank: LayerBank) -> list[str]:
    """Groups whose channels go: read by one layer alone; of MiniLM those of the MLPs."""
    found = []
    for group in bank.inventory.channel_groups:
        sides = [m.side for m in bank.plan.members[group.name]]
        if not group.residual and sides.count("in") == 1 and "heads" not in sides:
            found.append(group.name)
    return found


def fisher(model: nn.Module, names: Sequence[str], data: Data, count: int) -> dict[str, Tensor]:
    """Mean squared gradient of the log likelihood by each layer's outputs, ``(outputs,)``.

    Labels are drawn from the model's own answers: the true Fisher information, not the empirical.
    """
    total = {name: torch.zeros(()) for name in names}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            def add(gradient: Tensor) -> None:
                axes = [0, *range(2, gradient.dim())] if gradient.dim() == 4 else None
                rows = gradient.double() ** 2
                by = rows.sum(axes) if axes else rows.flatten(0, -2).sum(0)
                total[name] = total[name] + by

            output.register_hook(add)

        return note

    hooks = [model.get_submodule(n).register_forward_hook(watch(n)) for n in names]
    torch.manual_seed(0)
    inputs = data.train.sample(count, 0).inputs()
    for part in inputs.split(64):
        with torch.enable_grad():
            logits = model(part)
            drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
            nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return {name: found / found.mean() for name, found in total.items()}


def weighted(bank: LayerBank, groups: Sequence[str], weights: Mapping[str, Tensor]) -> Orders:
    """The greedy order, where each output of a reader counts by its weight."""
    found = {}
    for group in groups:
        reader = Reader(bank, group)
        consumer = Consumer(
            reader.weight.float(),
            reader.moments.float(),
            reader.blocks,
            bank.settings.ridge,
            weights[reader.name],
        )
        units = bank.plan.units[group]
        order = obs_order([consumer], [(i,) for i in range(len(units))])
        found[group] = [channel for unit in order for channel in units[unit]]
    return found


def error(reader: Reader, kept: Sequence[int]) -> float:
    """Damped squared error of a reader's outputs, solved anew on the units that are kept."""
    own = reader.blocks[sorted(kept)].flatten()
    cross = reader.weight @ reader.damped[:, own]
    solved = torch.linalg.solve(reader.damped[own][:, own], cross.T)
    whole = ((reader.weight @ reader.damped) * reader.weight).sum()
    return float(whole - (cross * solved.T).sum())


def exchanged(reader: Reader, kept: Sequence[int], limit: int) -> tuple[list[int], int]:
    """Units after exchanges that lower the error, and how many there were."""
    held = list(kept)
    everything = range(len(reader.blocks))
    products = reader.weight @ reader.damped
    for done in range(limit):
        own = reader.blocks[held].flatten()
        gone = [u for u in everything if u not in set(held)]
        factor = torch.linalg.cholesky(reader.damped[own][:, own])
        solved = torch.cholesky_solve(products[:, own].T, factor)
        other = reader.blocks[gone]
        residual = (products - solved.T @ reader.damped[own])[:, other]  # (outputs, units, size)
        cross = reader.damped[own][:, other.flatten()]
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        half = half.view(len(own), *other.shape)
        inner = reader.damped[other[:, :, None], other[:, None, :]]
        inner = inner - torch.einsum("fub,fuc->ubc", half, half)
        gain = torch.einsum(
            "oub,ubo->u", residual, torch.linalg.solve(inner, residual.permute(1, 2, 0))
        )
        best = int(gain.argmax())
        grown = [*held, gone[best]]
        features = reader.blocks[grown]
        flat = features.flatten()
        inverse = torch.linalg.inv(reader.damped[flat][:, flat])
        weights = (products[:, flat] @ inverse).view(len(reader.weight), *features.shape)
        places = torch.arange(len(flat)).view(features.shape)
        blocks = inverse[places[:, :, None], places[:, None, :]]
        loss = torch.einsum(
            "oub,ubo->u", weights, torch.linalg.solve(blocks, weights.permute(1, 2, 0))
        )
        least = int(loss.argmin())
        if least == len(held) or loss[least] >= gain[best] * (1 - 1e-9):
            return held, done
        held = [u for u in grown if u != grown[least]]
    return held, limit


def swapped(bank: LayerBank, groups: Sequence[str], keep: float, limit: int) -> tuple[Orders, Any]:
    """Orders whose kept units are those after exchanges; and how much they gained."""
    found, told = {}, []
    for group in groups:
        reader = Reader(bank, group)
        units = bank.plan.units[group]
        number = {unit: i for i, unit in enumerate(units)}
        size = len(units[0])
        order = bank.orders[group]
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        ordered = [number[tuple(sorted(part))] for part in parts]
        kept = ordered[-round(keep * len(units)) :]
        after, count = exchanged(reader, kept, limit)
        before, now = error(reader, kept), error(reader, after)
        assert now <= before * (1 + 1e-6), (group, before, now)
        told.append((count, 1 - now / before))
        last = [*(u for u in ordered if u not in set(after)), *after]
        found[group] = [channel for unit in last for channel in units[unit]]
    counts, gains = zip(*told, strict=True)
    return found, {"exchanges": sum(counts), "error_less": round(float(np.mean(gains)), 4)}


class Folding:
    """Clusters of a group's channels, by their producer's weights and what its norm makes of them.

    Args:
        bank: of the network.
        group: of channels that one layer makes and one reads.
        count: clusters.
    """

    def __init__(self, bank: LayerBank, group: str, count: int) -> None:
        members = bank.plan.members[group]
        self.group = group
        self.reader = Reader(bank, group)
        made = {m.module: bank.model.get_submodule(m.module) for m in members if m.side != "in"}
        norms = [name for name, module in made.items() if isinstance(module, nn.BatchNorm2d)]
        self.norm = norms[0] if norms else None
        layers = (nn.Conv2d, nn.Linear)
        (self.layer,) = [name for name, module in made.items() if isinstance(module, layers)]
        weight, scale, shift = self._folded(bank.model)
        rows = torch.cat([weight.flatten(1) * scale[:, None], shift[:, None]], 1)
        centres, labels = kmeans2(rows.numpy(), count, minit="++", seed=0, iter=50)
        self.labels = torch.from_numpy(labels).long()
        kept = []
        for place, centre in enumerate(centres):
            own = np.flatnonzero(labels == place)
            if len(own):
                kept.append(int(own[((rows.numpy()[own] - centre) ** 2).sum(1).argmin()]))
        spare = [c for c in bank.orders[group][::-1] if c not in set(kept)]
        self.kept = sorted([*kept, *spare[: count - len(kept)]])
        self.rows = rows
        self.order = [c for c in bank.orders[group] if c not in set(self.kept)] + self.kept

    def _folded(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        layer = model.get_submodule(self.layer)
        weight = layer.weight.detach().double()
        bias = layer.bias.detach().double() if layer.bias is not None else torch.zeros(len(weight))
        if self.norm is None:
            return weight, torch.ones(len(weight), dtype=torch.float64), bias.double()
        norm = model.get_submodule(self.norm)
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        return weight, scale, norm.bias.detach().double() + scale * (bias - norm.running_mean)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Give the kept channels of an uncut copy their cluster's centre, and its readers' sum."""
        _, scale, _ = self._folded(model)
        layer, reader = model.get_submodule(self.layer), model.get_submodule(self.reader.name)
        norm = model.get_submodule(self.norm) if self.norm else None
        columns = reader.weight.detach().clone()
        for channel in self.kept:
            own = (self.labels == self.labels[channel]).nonzero().flatten()
            if any(int(c) in self.kept and int(c) != channel for c in own):
                own = torch.tensor([channel])  # a cluster that two channels stand for
            centre = self.rows[own].mean(0)
            layer.weight[channel] = (centre[:-1] / scale[channel]).view_as(layer.weight[channel])
            if norm is None:
                layer.bias[channel] = centre[-1]
            else:
                own_bias = layer.bias[channel] if layer.bias is not None else 0
                mean = norm.running_mean[channel] - own_bias
                norm.bias[channel] = centre[-1] + scale[channel] * mean
            places = [self.reader.member.index[int(c)] for c in own]
            into = self.reader.member.index[channel]
            summed = sum(columns[:, list(place)] for place in places)
            reader.weight[:, list(into)] = summed


def with_orders(bank: LayerBank, orders: Orders, model: nn.Module | None = None) -> LayerBank:
    """The same bank with other orders (and merged weights)."""
    return LayerBank(
        model or bank.model,
        bank.inventory,
        bank.plan,
        bank.settings,
        {**bank.orders, **orders},
        bank.moments,
    )


def scored(bank: LayerBank, made: Compressed, data: Data, images: int) -> dict[str, float]:
    """Accuracy as stitched and after the sequential re-solve."""
    found = {"stitched": round(score(module_answers(made.module, data.val)).value, 4)}
    seen = data.train.sample(images, 0).inputs()
    made = sequential_resolve(bank.model, made, seen)
    return {**found, "resolved": round(score(module_answers(made.module, data.val)).value, 4)}


def ways(bank: LayerBank, data: Data, keep: float, args: Any) -> Iterator[dict[str, Any]]:
    """One row for each way to choose."""
    groups = groups_of(bank)
    producers = [p for g in bank.inventory.channel_groups if g.name in groups for p in g.producers]
    policy = Policy(dict.fromkeys(producers, LayerPolicy(prune_ratio=1 - keep)))
    readers = [Reader(bank, group).name for group in groups]
    for way in args.way or WAYS:
        told: Any = {}
        other, solve = bank, True
        if way == "swaps":
            orders, told = swapped(bank, groups, keep, args.swaps)
            other = with_orders(bank, orders)
        elif way == "fisher":
            weights = fisher(bank.model, readers, data, args.fisher_images)
            other = with_orders(bank, weighted(bank, groups, weights))
        elif way == "folding":
            merged, solve = copy.deepcopy(bank.model), False
            orders = {}
            for group in groups:
                folding = Folding(bank, group, round(keep * len(bank.orders[group])))
                folding.merge(merged)
                orders[group] = folding.order
            other = with_orders(bank, orders, merged)
        made = other.stitch(policy, solve=solve)
        yield {"keep": keep, "way": way, **scored(bank, made, data, args.images), **told}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at half width, few images")
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--swaps", type=int, default=64, help="exchanges of a group at most")
    parser.add_argument("--images", type=int, default=1024, help="of the re-solve")
    parser.add_argument("--fisher-images", type=int, default=512)
    args = parser.parse_args()
    if args.quick:
        args.network, args.keep, args.images, args.swaps = ["resnet20"], [0.5], 256, 4
    rows = []
    for name in args.network or NETWORKS:
        model, data = loaded(name)
        inventory = take_inventory(model, data.train.inputs(1))
        bank = LayerBank.build(model, inventory, data.train, CompressionSettings())
        if name == "minilm":
            args.images, args.fisher_images = min(args.images, 256), min(args.fisher_images, 256)
        base = round(score(module_answers(model, data.val)).value, 4)
        for keep in args.keep:
            for row in ways(bank, data, keep, args):
                rows.append({"network": name, "uncompressed": base, **row})
                print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"rows": rows}, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
