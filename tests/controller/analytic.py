"""A model that exists on paper only: accuracy and cost are closed forms of the policy.

``tests/controller`` and ``tests/execute`` share it; workers in other processes import it by name.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.controller.protocols import Job
from autocompress.errors import PolicyError
from autocompress.machine.facts import cores_to_use
from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec
from autocompress.policy.policy import Policy
from autocompress.policy.space import Space
from autocompress.policy.space_config import SpaceConfig
from autocompress.results.metric import Measurement
from autocompress.results.screened import Screened
from autocompress.results.trial import SEARCH, Phase, Trial

RATIOS = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]


def make_space(layers: int = 9, levels: int = 8, *, bits: bool = False, **more: object) -> Space:
    """A chain of prunable layers of one width."""
    names = [f"l{i}" for i in range(layers)]
    specs = [LayerSpec(n, "conv", 16, 16, (3, 3), (1, 1), out_group=n) for n in names]
    specs.append(LayerSpec("head", "linear", 16, 10))
    readers = [*names[1:], "head"]
    groups = [ChannelGroup(n, (n,), (r,), 16) for n, r in zip(names, readers, strict=True)]
    rule: dict[str, object] = {"prune_ratio": RATIOS[:levels]}
    if bits:
        rule |= {"weight_bits": [32, 8], "activation_bits": [32, 8]}
    inventory = Inventory(tuple(specs), tuple(groups), ((3, 8, 8),), "arch", "weights")
    return SpaceConfig.read({"rules": [rule], **more}).bind(inventory)


@dataclass
class AnalyticEvaluator:
    """Accuracy falls with the square of what is removed, more where two neighbours are thin.

    Args:
        layers: of ``make_space``.
        seed: draws how much each layer hurts and costs.
        violent: what to do instead of measuring: ``crash``, ``nan``, ``hang`` (half a second),
            ``hang for ever``, ``print``, ``exit`` (the process dies), ``full`` (of a disk),
            ``astray`` (fail where the relative folder ``beside`` is not found), ``cores`` (tell how
            many it may keep busy); ``""`` measures.
        share: of the policies, chosen by digest, that meet with violence.
    """

    layers: int = 9
    seed: int = 0
    violent: str = ""
    share: float = 0.5
    evaluated: list[tuple[str, Phase]] = field(default_factory=list)
    observed: list[Trial] = field(default_factory=list)
    screened: int = 0

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        self.hurt = [0.02 * 2 ** draw.uniform(-2.5, 2.5) for _ in range(self.layers)]
        self.cost = [2 ** draw.uniform(-1.0, 1.0) for _ in range(self.layers)]

    def _loss(self, policy: Policy) -> float:
        ratios = [policy[f"l{i}"].prune_ratio for i in range(self.layers)]
        alone = sum(h * r * r for h, r in zip(self.hurt, ratios, strict=True))
        pairs = sum(0.01 * a * b for a, b in itertools.pairwise(ratios))
        bits = sum(0.001 for i in range(self.layers) if policy[f"l{i}"].integer)
        return alone + pairs + bits

    def _macs(self, policy: Policy) -> float:
        kept = [1.0 - policy[f"l{i}"].prune_ratio for i in range(self.layers)]
        below = [1.0, *kept[:-1]]
        return sum(c * a * b for c, a, b in zip(self.cost, kept, below, strict=True))

    def _latency(self, policy: Policy) -> float:
        kept = [1.0 - policy[f"l{i}"].prune_ratio for i in range(self.layers)]
        speed = [0.6 if policy[f"l{i}"].integer else 1.0 for i in range(self.layers)]
        return 0.5 + sum(
            c * k * s for c, k, s in zip(self.cost, kept, speed, strict=True)
        )  # the half is overhead that nothing takes away

    @property
    def baseline(self) -> Measurement:
        return self._measurement(Policy(), 0.9)

    def _measurement(self, policy: Policy, accuracy: float) -> Measurement:
        values = {"latency_ms": self._latency(policy), "macs": self._macs(policy)}
        return Measurement(
            {"accuracy": accuracy, **values, "size_bytes": 4 * values["macs"]},
            {"accuracy": 0.002, "latency_ms": 0.01},
        )

    def estimate(self, policy: Policy) -> Measurement:
        found = self._measurement(policy, 0.0).values
        costs = {k: v for k, v in found.items() if k != "accuracy"}
        return Measurement(costs, {"latency_ms": 0.01 * costs["latency_ms"]})

    def screen(self, policy: Policy, images: int) -> Screened:
        self.screened += 1
        self._attack(policy, hang_s=0.0)
        return Screened(5.0 * self._loss(policy), 0.01, images)

    def _attack(self, policy: Policy, hang_s: float) -> None:
        if not self.violent or int(policy.untrained_digest[:8], 16) / 0xFFFFFFFF >= self.share:
            return
        if self.violent == "crash":
            raise RuntimeError("a crash, on purpose")
        if self.violent == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/full")
        if self.violent == "ours":
            raise PolicyError("a refusal, on purpose")
        if self.violent == "exit":
            os._exit(17)
        if self.violent == "hang":
            time.sleep(hang_s)
        if self.violent == "hang for ever":
            time.sleep(1e6)
        if self.violent == "print":
            print("printed on purpose")

    def observe(self, trial: Trial) -> None:
        self.observed.append(trial)

    def evaluate(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        self.evaluated.append((policy.digest, phase))
        self._attack(policy, hang_s=0.5)
        if self.violent == "astray":
            os.stat("beside")
        loss = self._loss(policy)
        if phase.epochs > 0:
            loss *= 0.5 / phase.epochs
        if phase.epochs > 0 and policy.distill is not None:
            loss *= 0.9
        if phase.kind == "verify":
            loss += 0.01
        if self.violent == "cores":
            found = self._measurement(policy, 0.9 - loss)
            return replace(found, values={**found.values, "params": cores_to_use()})
        if self.violent == "nan" and int(policy.digest[:8], 16) / 0xFFFFFFFF < self.share:
            loss = math.nan
        return self._measurement(policy, 0.9 - loss)

    def score(self, policy: Policy, phase: Phase = SEARCH, seed: int = 0) -> Measurement:
        return self.evaluate(policy, phase, seed)

    def files(self, policy: Policy, phase: Phase, seed: int) -> list[Path]:
        return []

    def timed(self, scored: Sequence[Measurement]) -> list[Measurement]:
        return list(scored)


class Cautious(AnalyticEvaluator):
    """Estimates of latency are 30 % above the truth, with an error of 10 % of themselves."""

    def estimate(self, policy: Policy) -> Measurement:
        found = super().estimate(policy)
        high = 1.3 * found["latency_ms"]
        return Measurement({**found.values, "latency_ms": high}, {"latency_ms": 0.1 * high})


@dataclass(frozen=True)
class AnalyticFactory:
    """Builds the evaluator in a worker and leaves a file behind for each time that it did.

    With ``exit in set-up`` the first process that tries dies, with ``never set up`` each does;
    with ``environment`` it asks for a variable.
    """

    folder: str
    violent: str = ""
    share: float = 0.5

    def __call__(self) -> AnalyticEvaluator:
        if self.violent == "never set up":
            os._exit(17)
        if self.violent == "exit in set-up":
            with suppress(FileExistsError):
                (Path(self.folder) / "died").touch(exist_ok=False)
                os._exit(17)
        if self.violent == "environment":
            assert os.environ["AUTOCOMPRESS_OF_THE_MOMENT"] == "set"
        stamp = f"{os.getpid()}-{time.monotonic_ns()}"
        (Path(self.folder) / stamp).touch()
        return AnalyticEvaluator(violent=self.violent, share=self.share)


def jobs(count: int, space: Space | None = None) -> list[Job]:
    """Jobs of different policies."""
    space = space or make_space()
    draw = random.Random(5)
    found: list[Job] = []
    for number in range(count):
        levels = [draw.randrange(len(c.levels)) for c in space.choices]
        found.append(Job(number, space.decode(levels), SEARCH, 0, "test"))
    return found


def numbered(job: Job, number: int, **more: float) -> Job:
    """The same job under another number, or within a limit."""
    return replace(job, number=number, **more)
