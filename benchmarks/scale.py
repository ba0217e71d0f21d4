"""How a search behaves with thousands of trials: choosing, memory, resuming, the report.

A made-up evaluator answers at once, so that all time is the controller's own. Printed per sampler:
seconds of a proposal (median and 95th percentile, and those of the last tenth), of the whole loop,
peak memory, seconds to take a finished journal up again, seconds and bytes of the report.

    python benchmarks/scale.py --json [--trials 10000] [--layers 18] [--sampler guided ...]

With ``--workers`` the evaluations take time on paper, on so many workers at once, while the
controller's own time is real: how busy both are, and the rate at which the controller saturates.

    python benchmarks/scale.py --json --workers 1000 --evaluation-s 60 --trials 5000
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.protocols import Job, Outcome, Proposal
from autocompress.controller.samplers import make_proposer
from autocompress.execute.local import InProcessExecutor, evaluate
from autocompress.policy.budget import Budget
from autocompress.report.html import write_report
from autocompress.testing.sampler import ChainEvaluator, chain_space
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal

SAMPLERS = ("guided", "tpe", "nsga2", "random")


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def study(sampler: str, trials: int, layers: int, levels: int, journal: Journal) -> Context:
    """A study on what the journal holds so far."""
    evaluator = ChainEvaluator(layers)
    return Context(
        chain_space(layers, levels, ()),
        evaluator,
        InProcessExecutor(evaluator),
        Budget("latency<=0.7x"),
        SearchConfig(sampler=sampler, trials=trials),
        [journal],
        journal.load(),
    )


def searched(sampler: str, trials: int, layers: int, levels: int, folder: Path) -> dict[str, Any]:
    """One search in this process, with a real journal."""
    run = RunFolder.create(folder)
    run.write_study({"name": sampler, "budget": ["latency<=0.7x"], "ray_address": None})
    run.write_baseline(ChainEvaluator(layers).baseline)
    asked: list[float] = []
    with Journal(run) as journal:
        context = study(sampler, trials, layers, levels, journal)
        proposer = make_proposer(context)
        suggest = proposer.suggest

        def timed(count: int) -> list[Proposal]:
            begin = time.perf_counter()
            found = suggest(count)
            asked.append(time.perf_counter() - begin)
            return found

        proposer.suggest = timed  # type: ignore[method-assign, assignment]  # watched
        begin = time.perf_counter()
        run_search(context, proposer)
        took = time.perf_counter() - begin
    begin = time.perf_counter()
    with Journal(run) as journal:
        again = study(sampler, trials, layers, levels, journal)
        run_search(again, make_proposer(again))
    resumed = time.perf_counter() - begin
    begin = time.perf_counter()
    report = write_report(run)
    reported = time.perf_counter() - begin
    last = asked[-max(1, len(asked) // 10) :]
    return {
        "sampler": sampler,
        "trials": len(context.ledger.trials),
        "ask_median_ms": 1e3 * statistics.median(asked),
        "ask_p95_ms": 1e3 * quantile(asked, 0.95),
        "last_tenth_p95_ms": 1e3 * quantile(last, 0.95),
        "loop_s": took,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "resume_s": resumed,
        "report_s": reported,
        "report_mb": report.stat().st_size / 1e6,
    }


class SimulatedWorkers:
    """Workers whose evaluations take time on paper; what the controller takes is real.

    Args:
        evaluator: answers at once.
        workers: at work at the same time.
        evaluation_s: mean of the times, which are log-normal (a sigma of 0.5).
    """

    def __init__(self, evaluator: ChainEvaluator, workers: int, evaluation_s: float) -> None:
        self.slots, self._evaluator = workers, evaluator
        self._mean, self._draw = evaluation_s, random.Random(0)
        self._running: list[tuple[float, int, Job]] = []
        self._since = time.perf_counter()
        self.now = self.controller_s = self.worked_s = 0.0

    def _pass(self) -> None:
        """The controller's own time passes for the workers, too."""
        took = time.perf_counter() - self._since
        self.now += took
        self.controller_s += took
        self._since = time.perf_counter()

    def submit(self, job: Job) -> None:
        self._pass()
        takes = self._mean * self._draw.lognormvariate(-0.125, 0.5)  # exp(-sigma^2 / 2) is mean 1
        self.worked_s += takes
        heapq.heappush(self._running, (self.now + takes, job.number, job))

    def wait(self, timeout: float | None = None) -> Outcome | None:
        self._pass()
        if not self._running:
            return None
        ends, _, job = heapq.heappop(self._running)
        self.now = max(self.now, ends)
        outcome = evaluate(self._evaluator, job)
        self._since = time.perf_counter()
        return outcome

    def close(self, *, cancel: bool = False) -> None:
        """Nothing is held."""


def many_workers(sampler: str, trials: int, layers: int, levels: int, given: Any) -> dict[str, Any]:
    """How much of many workers one controller keeps at work, and how many it could."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "run")
        with Journal(run) as journal:
            context = study(sampler, trials, layers, levels, journal)
            workers = SimulatedWorkers(ChainEvaluator(layers), given.workers, given.evaluation_s)
            context.executor = workers
            run_search(context, make_proposer(context))
    return {
        "sampler": sampler,
        "workers": given.workers,
        "evaluation_s": given.evaluation_s,
        "trials": trials,
        "hours": workers.now / 3600,
        "workers_busy": workers.worked_s / (workers.now * given.workers),
        "controller_busy": workers.controller_s / workers.now,
        "saturates_at_trials_per_s": trials / workers.controller_s,
    }


def main() -> None:
    """Each sampler in a process of its own, so that memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--sampler", nargs="*", default=list(SAMPLERS))
    parser.add_argument("--workers", type=int, help="simulate so many instead")
    parser.add_argument("--evaluation-s", type=float, default=60.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        size = given.trials, given.layers, given.levels
        if given.workers is not None:
            print(json.dumps(many_workers(given.one, *size, given)))
            return
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(searched(given.one, *size, Path(folder) / "run")))
        return
    rows = []
    for sampler in given.sampler:
        own = [*sys.argv, "--one", sampler]
        done = subprocess.run([sys.executable, *own], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not given.json:
            print(json.dumps(rows[-1], indent=2))
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
