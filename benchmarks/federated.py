"""What it costs to leave the data with clients: ResNet-20 on CIFAR-10, shared out by class.

Clients answer in this process, so that nothing but the arithmetic is compared: the layer bank and
the statistics of batch norms from sums against those of the same samples in one place, and against
those of a single client; recovery by rounds of local training against training in one place.

    AUTOCOMPRESS_DATA=... AUTOCOMPRESS_WEIGHTS=... python benchmarks/federated.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.build.bank import LayerBank
from autocompress.build.batch_norm import reestimate
from autocompress.build.statistics import Statistics, watched_layers
from autocompress.federated.journal import traffic
from autocompress.federated.local import InProcess
from autocompress.federated.server import FederatedPipeline
from autocompress.federated.study import FederatedAssembly, Simulated, assembled
from autocompress.model.attention import opened
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.recover.distill import Distillation
from autocompress.recover.finetune import fine_tune
from autocompress.results.trial import Phase
from autocompress.run.study import load_study
from autocompress.task.calling import call
from autocompress.task.data import Data, Split
from autocompress.techniques.moments import moment_sums, moments_of

RATIOS = (0.25, 0.5, 0.7)


def one_split(parts: list[Split]) -> Split:
    """The samples of several clients in one place."""
    stored, targets = zip(*(part.take(slice(None)) for part in parts), strict=True)
    return Split(torch.cat(stored), torch.cat(targets), parts[0].preprocess)


class Compared:
    """Clients and the same samples in one place.

    Args:
        clients: how many.
        alpha: how unlike.
        train: training samples of all clients together.
        val: validation samples that accuracies are told on.
        folder: of the journal.
    """

    def __init__(self, clients: int, alpha: float, train: int, val: int, folder: Path) -> None:
        federation = {"clients": clients, "split": "dirichlet", "alpha": alpha}
        schedule = {"batch_size": 128, "lr": 0.02, "device": "cpu"}
        study = load_study("cifar10_resnet20").changed(
            federation=federation, recovery={"schedule": schedule}
        )
        self.simulated = Simulated(study)
        parts = self.simulated.parts
        parts.data = _first(parts.data, train)
        transport = InProcess(range(clients), self.simulated.client)
        self.server_side: FederatedAssembly = assembled(
            transport, study, folder / "models", model=parts.model
        )
        self.settings: CompressionSettings = self.server_side.study.settings
        self.model: nn.Module = parts.model
        self.val = parts.data.val.sample(val, 0)
        share = self.server_side.server.calibrating(self.settings)
        each = [self.simulated.client(i).share(share, self.settings.seed) for i in range(clients)]
        self.calibration, self.each = one_split(each), each

    @property
    def pipeline(self) -> FederatedPipeline:
        """That asks the clients."""
        return self.server_side.pipeline

    def bank_of(self, sample: Split) -> LayerBank:
        """The bank of samples at hand, of all positions, as clients take them."""
        plan, inventory = self.pipeline.bank.plan, self.simulated.parts.inventory
        names, running = watched_layers(self.model, inventory, plan), opened(self.model)
        sums = moment_sums(running, names, sample, kind=torch.float64)
        found = Statistics(moments_of(sums))
        return LayerBank.of(self.model, inventory, plan, self.settings, found)

    def accuracy(self, module: nn.Module) -> float:
        """On val, in percent."""
        return 100 * score(module_answers(partial(call, module), self.val)).value

    def built(self, bank: LayerBank, policy: Policy, sample: Split) -> nn.Module:
        """Stitched, with batch norms re-estimated on samples at hand."""
        module = copy.deepcopy(bank.stitch(policy).module)
        reestimate(module, sample)
        return module


def _first(data: Data, train: int) -> Data:
    return Data(
        data.train.sample(train, 0),
        data.val,
        data.test,
        data.classes,
        data.augment,
        name=data.name,
        task=data.task,
    )


def banks(both: Compared) -> dict[str, Any]:
    """How far the bank of sums is from that of samples, and what policies are worth under each."""
    start = time.perf_counter()
    federated = both.pipeline.bank
    seconds = time.perf_counter() - start
    pooled = both.bank_of(both.calibration)
    gaps = {
        n: float((m.second - pooled.moments[n].second).norm() / pooled.moments[n].second.norm())
        for n, m in federated.moments.items()
    }
    alone = [both.bank_of(part) for part in both.each[:3]]
    rows = []
    for ratio in RATIOS:
        policy = Policy({group: LayerPolicy(ratio) for group in federated.orders})
        rows.append(
            {
                "prune_ratio": ratio,
                "stitched_federated": both.accuracy(federated.stitch(policy).module),
                "stitched_pooled": both.accuracy(pooled.stitch(policy).module),
                "built_federated": both.accuracy(both.pipeline.build(policy).module),
                "built_pooled": both.accuracy(both.built(pooled, policy, both.calibration)),
                "built_by_one_client": [
                    both.accuracy(both.built(bank, policy, part))
                    for bank, part in zip(alone, both.each, strict=False)
                ],
            }
        )
    return {
        "largest_relative_gap": max(gaps.values()),
        "same_orders": federated.orders == pooled.orders,
        "samples": len(both.calibration),
        "seconds": seconds,
        "policies": rows,
    }


def recovery(both: Compared, epochs: float) -> dict[str, Any]:
    """Rounds of local training against as many epochs in one place, distilled alike."""
    pipeline, parts = both.pipeline, both.simulated.parts
    policy = Policy({group: LayerPolicy(0.5) for group in pipeline.bank.orders})
    before = pipeline.build(policy)
    trained = pipeline.build(policy, Phase("recover", epochs, 1))
    start = both.bank_of(both.calibration).stitch(policy)
    reestimate(start.module, both.calibration)
    pooled = fine_tune(
        start,
        parts.data,
        pipeline.schedule.model_copy(update={"epochs": epochs}),
        distillation=Distillation([both.model], Distill()),
    )
    return {
        "epochs": epochs,
        "before": both.accuracy(before.module),
        "federated": both.accuracy(trained.module),
        "pooled": both.accuracy(pooled.module),
    }


def scale(clients: int, folder: Path) -> dict[str, Any]:
    """The calibration round of many clients of a small model: time, bytes and memory."""
    study = load_study("quickstart").changed(
        federation={"clients": clients, "split": "iid", "calibration_images": 100_000}
    )
    simulated = Simulated(study)
    data = simulated.parts.data
    order = torch.arange(2 * clients)
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        setattr(data, name, split.subset(order % len(split)))
    transport = InProcess(range(clients), simulated.client)
    model = simulated.parts.model
    server: FederatedAssembly = assembled(transport, study, folder / "models", model=model)
    before, start = _peak(), time.perf_counter()
    _ = server.bank
    rounds = server.server.rounds.journal.rounds()
    return {
        "clients": clients,
        "seconds": time.perf_counter() - start,
        "received_bytes": traffic(rounds)["kinds"]["moments"]["received_bytes"],
        "memory_growth_mb": _peak() - before,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples, no recovery")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--only", nargs="+", help="parts to measure, by name")
    asked = parser.parse_args()
    train, val = (5000, 1000) if asked.quick else (50_000, 5000)
    found: dict[str, Any] = {"clients": asked.clients, "alpha": asked.alpha}
    parts: dict[str, Callable[[Path], Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        both = Compared(asked.clients, asked.alpha, train, val, Path(place) / "study")
        parts["banks"] = lambda folder: banks(both)
        if not asked.quick:
            parts["recovery"] = lambda folder: recovery(both, 2.0)
        for name, clients in (("hundred", 100), *(() if asked.quick else (("thousand", 1000),))):
            parts[name] = partial(scale, clients)
        for name, measure in parts.items():
            if asked.only and name not in asked.only:
                continue
            found[name] = measure(Path(place) / name)
            if not asked.json:
                print(name, json.dumps(found[name], indent=1), flush=True)
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
