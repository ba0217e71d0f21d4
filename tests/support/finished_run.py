"""A run of two measured trials whose latencies no machine has a say in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiny_study import study_of

from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Trial
from autocompress.run.assembly import assemble
from autocompress.run.study import read_study
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal, read_entries


def timed_as(found: Measurement, latency_ms: float) -> Measurement:
    """What was measured with a latency that no machine has a say in."""
    context = {k: v for k, v in found.context.items() if k != "timing"}
    return replace(found, values={**found.values, "latency_ms": latency_ms}, context=context)


def finished_run(root: Path, base_ms: float = 1.0) -> RunFolder:
    """A run with a poor and quick member, and a better one, still worse than the original."""
    folder = RunFolder.create(root)
    parts = assemble(read_study(study_of()), folder.models)
    folder.write_study(parts.study.model_dump(mode="json"))
    evaluator = parts.evaluator
    folder.write_baseline(timed_as(evaluator.baseline, base_ms))
    with Journal(folder) as journal:
        for number, (prune, ratio) in enumerate(((0.8, 0.1), (0.6, 0.6))):
            policy = parts.space.decode(parts.space.uniform(prune_ratio=prune))
            found = timed_as(evaluator.evaluate(policy, SEARCH, 0), ratio * base_ms)
            journal.record(Trial(number, policy, SEARCH, measurement=found))
    return folder


def rewritten(folder: RunFolder, change: Callable[[Measurement], Measurement]) -> None:
    """Let all that a run has measured be something else."""
    entries, baseline = read_entries(folder), folder.read_baseline()
    assert baseline is not None
    folder.write_baseline(change(baseline))
    folder.trials.unlink()
    with Journal(folder) as journal:
        for trial in (entry.trial for entry in entries):
            found = None if trial.measurement is None else change(trial.measurement)
            journal.record(replace(trial, measurement=found))


def with_costs(*names: str) -> Callable[[Measurement], Measurement]:
    """For ``rewritten``: further costs, each as large as the latency."""

    def changed(found: Measurement) -> Measurement:
        more = dict.fromkeys(names, found["latency_ms"])
        return replace(found, values={**found.values, **more})

    return changed
