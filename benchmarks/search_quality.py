"""How good the search is: guided against Optuna's plain samplers, and zero-shot against uniform.

Three parts, each a figure of docs/search_quality.md:

* ``ask``: seconds that the controller takes for a proposal, many choices and many trials told;
* ``half``, ``quarter``: inner channels pruned to a share of their MACs, searched without
  training, the most accurate policies finished by the sequential re-solve, beside uniform ones;
* ``compare``: every sampler on each study (ResNet-20 in the joint space, VGG-16-BN pruned in
  int8), the same evaluator and seeds, hypervolume over wall-clock time. The checkpoint is taken as
  it is, also where the study would first finish its training. With ``--tpe-trials`` TPE goes on
  after its time until it has evaluated so many policies: how many does guided need for the same
  hypervolume?

Data and weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS. Plots go to
``benchmarks/out``. When all runs are made, whatever was on the front of one is timed again, all of
it in one go, and these latencies count. With ``--runs`` each compared run is kept in a file, and
those that are there are not made again: more seeds later, or the rest after an interruption.

    python benchmarks/search_quality.py --json [--quick] [--part ask,half,quarter,compare]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compared_runs import contenders, draw, judge, shares, timed_together, verdict

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import SearchResult, run_search
from autocompress.controller.optuna_study import OptunaController
from autocompress.controller.phases import FINISHED, run_finish
from autocompress.controller.samplers import make_proposer
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.policy.inventory import Inventory
from autocompress.policy.recovery import RecoveryConfig
from autocompress.policy.space import Choice, Space
from autocompress.results.metric import ACCURACY, LATENCY, Measurement
from autocompress.results.trial import SEARCH, Phase, Trial
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import load_study

STUDIES = ("cifar10_resnet20", "cifar10_vgg16")
SAMPLERS = ("guided", "tpe", "nsga2", "random")
_FINISH_S = 7.0
"""Seconds set aside for finishing one policy."""


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` is to run: ``tpe_trials`` and ``runs`` as on the command line."""

    study: str
    seconds: float
    seeds: int
    samplers: tuple[str, ...]
    tpe_trials: int | None = None
    runs: Path | None = None
    judge_only: bool = False

    def longer(self, sampler: str) -> bool:
        """Whether a sampler goes on after its time."""
        return sampler == "tpe" and self.tpe_trials is not None

    def kept(self, sampler: str, seed: int) -> dict[str, Any] | None:
        """The run in its file, where there is one; to judge only, a shorter one of TPE will do."""
        paths = [self.path(sampler, seed, self.longer(sampler))]
        if self.judge_only:
            paths.append(self.path(sampler, seed, False))
        path = next((p for p in paths if p and p.is_file()), None)
        if path is None:
            return None
        run: dict[str, Any] = json.loads(path.read_text())
        if "trials" not in run:
            raise SystemExit(f"{path} is of an earlier version: delete it, or its folder.")
        return run

    def path(self, sampler: str, seed: int, longer: bool) -> Path | None:
        """Where a run is kept, if it is."""
        length = f"{self.tpe_trials}trials" if longer else f"{self.seconds:g}s"
        name = f"{Path(self.study).stem}-{sampler}-{length}-{seed}.json"
        return self.runs / name if self.runs else None


@dataclass
class Clock:
    """A sink that notes when each trial was done."""

    started: float = field(default_factory=time.monotonic)
    events: list[tuple[float, Trial]] = field(default_factory=list)

    def record(self, trial: Trial) -> None:
        """Keep the trial with its time."""
        self.events.append((time.monotonic() - self.started, trial))


def ask_times(parameters: int, trials: int, asks: int = 20) -> dict[str, float]:
    """Median seconds of ``ask`` per sampler after so many trials were told."""
    levels = tuple({"prune_ratio": i / 8} for i in range(8))
    names = [f"l{i}" for i in range(parameters)]
    choices = tuple(Choice(f"{n}/prune_ratio", "prune_ratio", (n,), levels) for n in names)
    space = Space(choices, Inventory((), (), ((1,),), "a", "w"))
    found = {}
    for sampler in ("tpe", "nsga2", "random"):
        draw = random.Random(0)
        controller = OptunaController(space, (ACCURACY, LATENCY), sampler, 0)
        taken = []
        for number in range(trials):
            asked = number >= trials - asks
            start = time.perf_counter()
            if asked:
                given = controller.ask()
                taken.append(time.perf_counter() - start)
            else:
                given = tuple(draw.randrange(8) for _ in choices)
            share = sum(given) / (7 * parameters)
            values = {"accuracy": 0.9 - share * share, "latency_ms": 1 - share}
            trial = Trial(number, space.decode(given), measurement=Measurement(values))
            controller.tell(given, trial)
        found[f"{sampler}_ask_s"] = round(statistics.median(taken), 4)
    return {"parameters": parameters, "trials": trials, **found}


def context(parts: Assembly, budget: Budget, config: SearchConfig, clock: Clock) -> Context:
    """One study over the assembled evaluator."""
    evaluator = parts.evaluator
    return Context(parts.space, evaluator, InProcessExecutor(evaluator), budget, config, [clock])


def search(ctx: Context) -> SearchResult:
    """The search phase with the sampler of the configuration."""
    return run_search(ctx, make_proposer(ctx))


def zero_shot(study: str, ratio: float, seconds: float, finish: int, seed: int) -> dict[str, Any]:
    """Inner channels pruned at the cost of a uniform ratio; all time counted, from an empty cache.

    Loading the data, the layer bank, searching and finishing all count; measuring the uniform
    policy and the test split for comparison does not.
    """
    space = {"rules": [{"match": "*", "prune_ratio": [i / 16 for i in range(16)]}]}
    config = load_study(study).changed(space=space)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOCOMPRESS_CACHE"] = str(Path(folder) / "cache")
        started = time.monotonic()
        parts = assemble(config, Path(folder))
        evaluator = parts.evaluator
        uniform = parts.space.decode(parts.space.uniform(prune_ratio=ratio))
        limit = evaluator.estimate(uniform)["macs"]
        prepared = time.monotonic() - started
        left = max(5.0, seconds - prepared - finish * _FINISH_S)
        settings = SearchConfig(
            trials=None, timeout_s=left, seed=seed, objectives=("accuracy", "macs")
        )
        ctx = context(parts, Budget(macs=limit), settings, Clock())
        found = search(ctx)
        run_finish(ctx, RecoveryConfig(candidates=finish))
        spent = time.monotonic() - started
        best = max(
            (t for t in ctx.ledger.trials if t.phase == FINISHED and t.feasible), key=accuracy_of
        )
        tested = evaluate(parts, best.policy, Phase("verify", 0.0, 1))
        searched = [t for t in ctx.ledger.trials if t.phase == SEARCH and t.seconds > 0]
        return {
            "macs": limit,
            "baseline": round(evaluator.baseline["accuracy"], 4),
            "uniform_bank": accuracy_of(evaluate(parts, uniform, SEARCH)),
            "uniform_finished": accuracy_of(evaluate(parts, uniform, FINISHED)),
            "searched_bank": max(accuracy_of(t) for t in searched if t.feasible),
            "searched_finished": accuracy_of(best),
            "searched_finished_test": accuracy_of(tested),
            "policy": list(parts.space.encode(best.policy) or ()),
            "origin": next(t.origin for t in ctx.ledger.trials if t.number == best.parent),
            "evaluations": len(searched),
            "bookkeeping_share": round(found.bookkeeping_s / found.seconds, 4),
            "prepared_s": round(prepared, 1),
            "seconds": round(spent, 1),
        }


def evaluate(parts: Assembly, policy: Any, phase: Phase) -> Trial:
    """One policy measured outside any study."""
    return Trial(0, policy, phase, measurement=parts.evaluator.evaluate(policy, phase))


def accuracy_of(trial: Trial) -> float:
    """Accuracy, or 0 for a trial without a measurement of it."""
    found = trial.measurement.get("accuracy") if trial.measurement else None
    return round(found or 0.0, 4)


def compare(plan: Comparison) -> dict[str, Any]:
    """One study at its own budget: every sampler, the same evaluator, several seeds."""
    # who searches better does not hang on the last points of accuracy, and they take hours
    config = load_study(plan.study).model_copy(update={"baseline": None})
    runs: dict[str, list[dict[str, Any]]] = {s: [] for s in plan.samplers}
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(config, Path(folder))
        parts.predict_latency()
        fresh = parts.evaluator.estimator.latency_model
        assert fresh is not None
        for seed in range(plan.seeds):
            for sampler in plan.samplers:
                run = plan.kept(sampler, seed)
                if run is None and not plan.judge_only:
                    # what one run measures must not inform the next
                    parts.evaluator.estimator.predict_with(fresh.copy())
                    run = one_run(parts, plan, sampler, seed)
                    path = plan.path(sampler, seed, plan.longer(sampler))
                    if path:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_text(json.dumps(run))
                if run is not None:
                    runs[sampler].append(run)
        runs = {sampler: made for sampler, made in runs.items() if made}
        budget = config.limits()
        latency = timed_together(parts.evaluator, contenders(runs, budget))
    judged = {
        sampler: [judge(run, budget, latency, plan.seconds) for run in made]
        for sampler, made in runs.items()
    }
    found = verdict(judged, plan.seconds)
    return {"budget": str(budget), "seconds": plan.seconds, "runs": judged, **found}


def compare_study(study: str, args: argparse.Namespace) -> dict[str, Any]:
    """``compare`` on one study as the command line has it, with plots."""
    plan = Comparison(
        study,
        args.seconds or (30.0 if args.quick else 300.0),
        args.seeds or (1 if args.quick else 5),
        tuple(args.samplers.split(",")),
        args.tpe_trials,
        args.runs,
        args.judge_only,
    )
    found = compare(plan)
    return {**found, "plots": draw(found, Path(study).stem)}


def one_run(parts: Assembly, plan: Comparison, sampler: str, seed: int) -> dict[str, Any]:
    """One search with one sampler; TPE goes on to ``tpe_trials`` where that is asked for."""
    clock = Clock()
    long = plan.longer(sampler)
    settings = SearchConfig(
        sampler=sampler,
        trials=plan.tpe_trials if long else None,
        timeout_s=None if long else plan.seconds,
        seed=seed,
        max_rejections=None,
    )
    ctx = context(parts, parts.study.limits(), settings, clock)
    found = search(ctx)
    baseline = parts.evaluator.baseline
    return {
        "seed": seed,
        "baseline": dict(baseline.values),
        "trials": shares(clock.events, baseline),
        "proposals": len(ctx.ledger.trials),
        "bookkeeping_share": round(found.bookkeeping_s / found.seconds, 4),
        "stopped": found.stopped,
        "seconds": round(found.seconds, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed, seconds instead of minutes")
    parser.add_argument("--part", default="ask,half,quarter,compare")
    parser.add_argument("--study", default=",".join(STUDIES), help="of half and quarter the first")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--seconds", type=float, default=None, help="of each study")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0, help="of half and quarter")
    parser.add_argument("--tpe-trials", type=int, help="how long TPE goes on in compare")
    parser.add_argument("--runs", type=Path, help="folder that keeps each compared run")
    parser.add_argument(
        "--judge-only", action="store_true", help="compare what is in --runs, also unequal seeds"
    )
    parser.add_argument("--finish", type=int, default=8, help="policies finished by re-solving")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.judge_only and not args.runs:
        parser.error("--judge-only needs --runs, the folder with the runs to judge")
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    parts, studies = args.part.split(","), args.study.split(",")
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    if "ask" in parts:
        result["ask"] = ask_times(180, 500 if args.quick else 2000)
    for part, ratio in (("half", 0.5), ("quarter", 0.75)):
        if part in parts:
            seconds = args.seconds or (60.0 if args.quick else 180.0)
            count = 2 if args.quick else args.finish
            result[part] = zero_shot(studies[0], ratio, seconds, count, args.seed)
    if "compare" in parts:
        result["compare"] = {study: compare_study(study, args) for study in studies}
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
