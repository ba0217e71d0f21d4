"""Cost the trials of a finished run again for another runtime or device, without searching."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autocompress.build.builder import Builder
from autocompress.estimate.other_device import device_model, remarks
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.extras import MEMORY
from autocompress.measure.latency import Timing
from autocompress.measure.measurer import Measurer
from autocompress.policy.costs import EXTRA, ON_OTHERS, WORST
from autocompress.policy.files import open_file
from autocompress.policy.policy import Policy
from autocompress.results.metric import LATENCY, Measurement
from autocompress.results.trial import Trial
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.factories import from_elsewhere
from autocompress.run.study import read_study
from autocompress.targets.config import named
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Entry
from autocompress.track.view import RunView
from autocompress.workloads.cache import latency_folder

_OF_SEVERAL = {*ON_OTHERS, WORST}
_log = logging.getLogger(__name__)
CostsOf = Callable[[Trial], tuple[dict[str, float], float]]
"""From a trial to its latency and what is measured beside it, and the spread of the latency."""


def retarget(
    folder: RunFolder,
    view: RunView,
    target: str,
    progress: Progress,
    *,
    python: str | None = None,
    trust: bool = False,
) -> RunView:
    """The same trials with their latency on another target; quality and size stay.

    Args:
        folder: of the run.
        view: of the run.
        target: a device's ``table.json`` (latencies are then predicted), or a runtime's name or a
            device's address (every trial's model is rebuilt, exported and timed there).
        progress: told what is going on.
        python: of a device.
        trust: import whatever functions the run's study names.

    Raises:
        InputError: no such table or runtime, or a table of another model.
    """
    study = read_study(folder.read_study(), where=str(folder.study))
    table = Path(target)
    predicted = table.suffix == ".json"
    if predicted:
        open_file(table, "kernel table", "The packed runner writes it.").close()
    if not predicted:
        study = study.changed(
            target=named(target, python),
            also_on=[],
            budget=[str(li) for li in study.limits().limits if li.metric not in _OF_SEVERAL],
            search={"objectives": ["quality", "latency_ms"]},
        )
    source = from_elsewhere(f"run {folder.root}", named=(target,), trust=trust)
    with scratch_folder("retarget") as scratch, source:
        parts = assemble(study, scratch, progress=progress)
        costs_of, base = _from_table(parts, table) if predicted else _timed(parts, folder)
        entries = []
        for done, entry in enumerate(view.entries):
            progress("trials on the other target", done / len(view.entries))
            entries.append(_recosted(entry, view, costs_of))
    baseline = _with_costs(view.baseline, base, 0.0, target)
    told = view.budget.on(baseline.values)
    if told != view.budget:
        _log.warning("Of the budget (%s) only this is known there: %s.", view.budget, told)
    known = tuple(m for m in view.objectives if m.name in baseline)
    objectives = known if len(known) > 1 else (view.objectives[0], LATENCY)
    fresh = replace(view, entries=tuple(entries), baseline=baseline, objectives=objectives)
    return fresh.under(told)


def _recosted(entry: Entry, view: RunView, costs_of: CostsOf) -> Entry:
    trial = entry.trial
    if trial.measurement is None or trial not in view.compared:
        return entry
    costs, spread = costs_of(trial)
    found = _with_costs(trial.measurement, costs, spread, "")
    return replace(entry, trial=replace(trial, measurement=found))


def _with_costs(
    found: Measurement, costs: dict[str, float], spread: float, target: str
) -> Measurement:
    # what was measured on the first target says nothing about this one
    context = {k: v for k, v in found.context.items() if k != "timing"}
    if target:
        context["target"] = {"retargeted": target}
    kept = {k: v for k, v in found.values.items() if k not in {c.name for c in EXTRA}}
    return replace(
        found,
        values={**kept, **costs},
        spread={**found.spread, "latency_ms": spread},
        context=context,
    )


def _from_table(parts: Assembly, table: Path) -> tuple[CostsOf, dict[str, float]]:
    model = device_model(table, parts.inventory, parts.study.settings, latency_folder())
    for sentence in remarks(model):
        _log.warning(sentence)

    def costs_of(trial: Trial) -> tuple[dict[str, float], float]:
        ms, spread = model.predict(trial.policy)
        return {"latency_ms": ms}, spread

    return costs_of, {"latency_ms": model.predict(Policy())[0]}


def _timed(parts: Assembly, folder: RunFolder) -> tuple[CostsOf, dict[str, float]]:
    measurer, kept = parts.evaluator.measurer, Builder(parts.pipeline, folder.models)
    uncompressed = measurer.baseline_file
    first = measurer.timing(uncompressed, max_seconds=8.0)
    base = _measured(measurer, uncompressed, first, first.baseline_ms)

    def costs_of(trial: Trial) -> tuple[dict[str, float], float]:
        trained = kept.trained(trial.policy, trial.phase, trial.seed)
        compressed = trained or parts.pipeline.build(trial.policy)
        path = measurer.file("candidate")
        measurer.export(compressed, path)
        timing = measurer.timing(path, max_seconds=8.0)
        ms = timing.ratio * base["latency_ms"]
        return _measured(measurer, path, timing, ms, base), timing.iqr_ms

    return costs_of, base


def _measured(
    measurer: Measurer, path: Path, timing: Timing, ms: float, base: dict[str, float] | None = None
) -> dict[str, float]:
    """A file's latency, and what is measured beside it."""
    memory = measurer.extras.memory(path) if MEMORY in measurer.asked else {}
    extras = measurer.beside_latency(path, timing, ms, base)
    return {"latency_ms": ms, **memory, **extras}
