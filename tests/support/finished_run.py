"""A run of two measured trials whose latencies no machine has a say in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny_study import study_of

from autocompress.results.metric import Measurement
from autocompress.results.trial import SEARCH, Trial
from autocompress.run.assembly import assemble
from autocompress.run.study import read_study
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal


def timed_as(found: Measurement, latency_ms: float) -> Measurement:
    """What was measured with a latency that no machine has a say in."""
    context = {k: v for k, v in found.context.items() if k != "timing"}
    return replace(found, values={**found.values, "latency_ms": latency_ms}, context=context)


def finished_run(root: Path, base_ms: float = 1.0) -> RunFolder:
    """A run with a poor and quick member, and a better one, not as good as the uncompressed."""
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
