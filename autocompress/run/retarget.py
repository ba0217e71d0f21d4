"""Cost the trials of a finished run again for another runtime or device, without searching."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from autocompress.estimate.other_device import device_model, remarks
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.machine.ssh import SCHEME
from autocompress.measure.extras import ExtraCosts
from autocompress.policy.costs import EXTRA, ON_OTHERS, WORST
from autocompress.policy.files import open_file
from autocompress.policy.policy import Policy
from autocompress.report.tables import ELSEWHERE
from autocompress.results.metric import LATENCY, Measurement
from autocompress.results.trial import Trial, TrialState
from autocompress.run.assembly import Assembly
from autocompress.run.elsewhere import Elsewhere
from autocompress.run.factories import from_elsewhere
from autocompress.run.reopened import reopened_there
from autocompress.run.study import StudyConfig, read_study
from autocompress.run.target_fit import reach, refuse_unfit
from autocompress.targets import get_target
from autocompress.targets.config import named
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Entry
from autocompress.track.view import RunView
from autocompress.workloads.cache import latency_folder

_OF_SEVERAL = {*ON_OTHERS, WORST}
_KEPT = ("threads", "batch", "lengths", "throughput")
"""Of a target: how a model runs, wherever."""
_FIRST_S, _USUAL_S, _TWO_MINUTES_S = 10.0, 4.0, 120.0
"""For model and data, and for a policy of which nothing is known."""
_FAILED = "its model could not be timed on the other target"
_TRY_AGAIN = (
    "%d of the run's policies could not be timed on %s, so that their trials count as failed "
    "there. `--retry` tries them again. The first: %s"
)
_log = logging.getLogger(__name__)


def study_there(folder: RunFolder, target: str, python: str | None = None) -> StudyConfig:
    """The study of a run with another target in the place of its own.

    Threads, batch and lengths stay; all else of the first target says nothing of the other.

    Args:
        folder: of the run.
        target, python: as of ``retarget``.
    """
    study = read_study(folder.read_study(), where=str(folder.study))
    plain, table = study.model_dump(mode="json"), Path(target)
    kept = {key: value for key, value in plain["target"].items() if key in _KEPT}
    named_there = named(target, python)
    if table.suffix == ".json":
        open_file(table, "kernel table", "The packed runner writes it.").close()
        named_there = {"table": target}
    limits = [str(li) for li in study.limits().limits if li.metric not in _OF_SEVERAL]
    return read_study(
        {
            **plain,
            "target": {**kept, **named_there},
            "also_on": [],
            "budget": limits,
            "search": {**plain["search"], "objectives": ["quality", "latency_ms"]},
        },
        where=str(folder.study),
    )


def retarget(
    folder: RunFolder,
    view: RunView,
    target: str,
    progress: Progress,
    *,
    python: str | None = None,
    retry: bool = False,
    trust: bool = False,
) -> tuple[RunView, StudyConfig]:
    """A run and its study on another target.

    The same trials with their latency there; quality and size stay. What was timed there before is
    taken from the run's folder; where nothing is missing, neither model nor data are read.

    Args:
        folder: of the run.
        view: of the run.
        target: a device's ``table.json`` (latencies are then predicted), or a runtime's name or a
            device's address (every policy's model is built, exported and timed there, once).
        progress: told what is going on.
        python: of a device.
        retry: try again what could not be timed there.
        trust: import whatever functions the run's study names.

    Raises:
        InputError: no such table or runtime, or a table of another model.
    """
    source = from_elsewhere(f"run {folder.root}", named=(target,), trust=trust)
    with scratch_folder("retarget") as scratch, source:
        study = study_there(folder, target, python)
        there = run_there(folder, view, study, scratch, progress, retry=retry)
        return there.view, there.study


@dataclass(frozen=True)
class RunThere:
    """A run on another target.

    Args:
        view: of the run, with costs there.
        study: of the run, with that target, and without limits that it cannot tell.
        parts: of that study, put together when they are first asked for.
    """

    view: RunView
    study: StudyConfig
    parts: Callable[[], Assembly]


def run_there(
    folder: RunFolder,
    view: RunView,
    study: StudyConfig,
    scratch: Path,
    progress: Progress,
    *,
    retry: bool = False,
) -> RunThere:
    """As ``retarget``, inside ``from_elsewhere``, with what it put together for that.

    Args:
        folder, view: of the run.
        study: of ``study_there``.
        scratch: for exported files.
        progress: told what is going on.
        retry: as of ``retarget``.
    """
    progress("reaching the other target", 0.0)
    target = get_target(study.target.config())
    reach(target)
    untold = ExtraCosts(target, study.extra_costs()).untold()
    limits = [str(limit) for limit in study.limits().limits if limit.metric not in untold]
    study = study.changed(budget=limits)
    refuse_unfit(type(target), study.settings)
    parts = cache(lambda: reopened_there(folder, view.baseline, study, scratch, progress))
    table = target.config.table
    costs_of = (
        _timed(Elsewhere(folder, target, study.extra_costs()), view, parts, progress, retry=retry)
        if table is None
        else _from_table(table, parts())
    )
    base = costs_of(Policy())
    assert isinstance(base, _Costs)
    baseline = base.instead_of(view.baseline)
    baseline = replace(baseline, context={**baseline.context, ELSEWHERE: _words(study)})
    tested = view.baseline_test and base.instead_of(view.baseline_test)
    told = view.budget.on(baseline.values)
    if told != view.budget:
        _log.warning("Of the budget (%s) only this is known there: %s.", view.budget, told)
    known = tuple(m for m in view.objectives if m.name in baseline)
    objectives = known if len(known) > 1 else (view.objectives[0], LATENCY)
    alone = (entry for entry in view.entries if entry.trial.phase.kind != "cascade")
    entries = tuple(_recosted(entry, costs_of) for entry in alone)
    fresh = replace(view, entries=entries, baseline=baseline, baseline_test=tested)
    return RunThere(replace(fresh, objectives=objectives).under(told), study, parts)


def _words(study: StudyConfig) -> list[str]:
    """The options that name its target."""
    target = study.target.config()
    if target.table is not None:
        return ["--target", str(target.table)]
    if not target.device.startswith(SCHEME):
        return ["--target", target.runtime]
    python = target.model_dump(mode="json")["python"]
    return ["--target", target.device, *(["--python", python] if python != "python3" else [])]


@dataclass(frozen=True)
class _Costs:
    """What a model takes there.

    Args:
        values: its latency, and what is measured beside it.
        spread: of the latency.
        context: where that is from.
    """

    values: Mapping[str, float]
    spread: float
    context: Mapping[str, Any]

    def instead_of(self, found: Measurement) -> Measurement:
        """A measurement with these costs: what was measured on the first target says nothing."""
        context = {k: v for k, v in found.context.items() if k not in _OF_THE_FIRST}
        if problems := context.get("problems"):  # the gate's are of the first target's kernels
            context["problems"] = [why for why in problems if found.quality.name in why]
        values, spread = (
            {k: v for k, v in told.items() if k not in _COSTS_OF_THE_FIRST}
            for told in (found.values, found.spread)
        )
        own = {LATENCY.name: self.spread} if LATENCY.name in self.values else {}
        return replace(
            found,
            values={**values, **self.values},
            spread={**spread, **own},
            context={**context, **self.context},
        )


_OF_THE_FIRST = frozenset(["target", "timing", "also_on", "notes", "conversions", "expected"])
_COSTS_OF_THE_FIRST = frozenset([LATENCY.name, *(cost.name for cost in EXTRA)])
_NOTHING = _Costs({}, 0.0, {})
CostsOf = Callable[[Policy], _Costs | str]
"""From a policy to what it takes there, or why that could not be measured."""


def _measured(trial: Trial) -> bool:
    """Whether a trial's costs were measured on the first target, of a single model."""
    measured = trial.state is TrialState.COMPLETE and trial.measurement is not None
    return measured and trial.phase.kind != "cascade"


def _recosted(entry: Entry, costs_of: CostsOf) -> Entry:
    """A trial of any phase: what verification found on the first target judges nothing there.

    Nor does what others were rejected on, or have in common with a trial that they repeat.
    """
    trial = entry.trial
    if trial.measurement is None:
        return entry
    costs = costs_of(trial.policy)
    if isinstance(costs, str) and _measured(trial):
        failed = replace(trial, state=TrialState.FAILED, measurement=None, reason=costs)
        return replace(entry, trial=failed)
    found = (_NOTHING if isinstance(costs, str) else costs).instead_of(trial.measurement)
    return replace(entry, trial=replace(trial, measurement=found))


def _from_table(table: Path, parts: Assembly) -> CostsOf:
    model = device_model(table, parts.inventory, parts.study.settings, latency_folder())
    for sentence in remarks(model, parts.study.target.config()):
        _log.warning(sentence)

    def costs_of(policy: Policy) -> _Costs | str:
        if policy.student is not None:
            return f"{_FAILED}: it is another architecture, of which a table tells nothing"
        ms, spread = model.predict(policy)
        of = {"retargeted": str(table)}
        return _Costs({"latency_ms": ms}, 0.0 if policy.identity else spread, {"target": of})

    return costs_of


def _timed(
    there: Elsewhere,
    view: RunView,
    parts: Callable[[], Assembly],
    progress: Progress,
    *,
    retry: bool,
) -> CostsOf:
    measured = [entry.trial for entry in view.entries if _measured(entry.trial)]
    policies = [Policy(), *(trial.policy for trial in measured)]
    if there.missing(policies, retry=retry):
        with there.alone():
            missing = there.missing(policies, retry=retry)
            if missing:
                _log.info(
                    "%d of the run's policies are to be timed on %s: each is built, exported and "
                    "timed there now, in about %s; `front` has them at once from then on.",
                    len(missing),
                    there.name,
                    _in_words(_expected_s(measured, missing)),
                )
                there.measure(parts().evaluator, missing, progress)

    each_once = dict.fromkeys(policy.untrained for policy in policies)
    if failed := [why for why in map(there.why_not, each_once) if why]:
        _log.warning(_TRY_AGAIN, len(failed), there.name, failed[0])

    def costs_of(policy: Policy) -> _Costs | str:
        found = there(policy)
        if found is None:
            return f"{_FAILED}: {there.why_not(policy)}"
        context = {"target": there.where, "timing": found["timing"]}
        return _Costs(found["costs"], found["spread"], context)

    return costs_of


def _expected_s(measured: Sequence[Trial], missing: Sequence[Policy]) -> float:
    """About how long exporting and timing will take: as long as it did in the search."""
    took = {}
    for trial in measured:
        told = trial.measurement.context if trial.measurement is not None else {}
        seconds = [told.get(key) for key in ("export_s", "time_s")]
        known = [s for s in seconds if isinstance(s, int | float)]
        took[trial.policy.untrained_digest] = sum(known) if known else _USUAL_S
    return _FIRST_S + sum(took.get(p.untrained_digest, _USUAL_S) for p in missing)


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < _TWO_MINUTES_S else f"{seconds / 60:.0f} minutes"
