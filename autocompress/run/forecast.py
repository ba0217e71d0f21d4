"""A finished run asked about other budgets: what is known, and what to expect."""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autocompress.controller.context import Context
from autocompress.controller.guided.forecast import COVERAGE, Forecast, Forecaster, Interval
from autocompress.errors import InputError
from autocompress.execute.local import InProcessExecutor
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.budget import Budget, Limit
from autocompress.policy.costs import BY_NAME, COSTS, EXTRA
from autocompress.policy.files import check_output
from autocompress.policy.writing import replacing
from autocompress.report.tables import elsewhere
from autocompress.results.answer import rejudged
from autocompress.results.metric import Metric
from autocompress.results.trial import Trial
from autocompress.run.assembly import Assembly
from autocompress.run.factories import from_elsewhere
from autocompress.run.reopened import reopened, resume, study_of
from autocompress.run.retarget import run_there, study_there
from autocompress.run.study import StudyConfig
from autocompress.track.folder import RunFolder
from autocompress.track.screened import ScreenedPolicies
from autocompress.track.view import RunView

SECONDS = 6.0
"""For screening what the run did not, beside reading model, data and layer bank."""
POINTS = 12
"""Budgets of a sweep."""
_FORECASTS = "forecasts"
"""Folder within the run's, of what is made here."""
_NOT_THERE = (
    "On another target nothing is known of {}: beside the latency it is timed for what the run's "
    "own budget limits, as far as the target tells it. There is {}."
)
_log = logging.getLogger(__name__)


def forecast(
    run: str,
    limits: Sequence[str],
    progress: Progress,
    *,
    target: str | None = None,
    python: str | None = None,
    retry: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """The best policy to expect at a budget, beside the best that was measured within it.

    Args:
        run: folder of a run whose search has trials.
        limits: of the budget.
        progress: told what is going on.
        target, python, retry: another target, as of ``retarget``; costs are those there.
        trust: import whatever functions the run's study names.

    Returns:
        Plain data: ``measured`` (a trial, or ``None``), ``expected`` (or ``None``), ``policy_file``
        and the command that measures it, ``coverage`` of its intervals; ``only_measured``, limits
        of which estimates tell nothing, so that what is expected need not keep to them.

    Raises:
        InputError: a run that cannot be opened again, or a limit that cannot be read or on what
            was not measured.
    """
    budget, began = Budget.parse(limits), time.monotonic()
    with _opened(run, budget, progress, target, python, retry=retry, trust=trust) as opened:
        made = _forecaster(opened, progress)
        progress("solving", 0.8)
        foretold = made.foretold(budget)
        only_measured = [str(li) for li in budget.limits if li not in foretold.limits]
        expected = made.at(foretold) if foretold.limits or not only_measured else None
        answer = _answer(opened, budget, expected)
    return {
        "run": str(opened.folder.root),
        "quality": opened.view.quality.as_dict(),
        "budget": [str(limit) for limit in budget.limits],
        "only_measured": only_measured,
        "learned_from": made.learned_from,
        "coverage": COVERAGE,
        **answer,
        "seconds": time.monotonic() - began,
    }


def sweep(
    run: str,
    progress: Progress,
    *,
    target: str | None = None,
    python: str | None = None,
    retry: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """The same for budgets from the cheapest policy to the uncompressed model.

    Args:
        run, progress, target, python, retry, trust: as of ``forecast``.

    Returns:
        Plain data: ``sweep``, a list of what ``forecast`` tells of each budget.
    """
    began = time.monotonic()
    with _opened(run, Budget(), progress, target, python, retry=retry, trust=trust) as opened:
        made = _forecaster(opened, progress)
        least, most = made.ends()
        cost, found = made.context.cost, list[dict[str, Any]]()
        for number, bound in enumerate(np.geomspace(least * 1.02, most, POINTS)):
            progress("solving", number / POINTS)
            budget = Budget(Limit(cost, float(f"{bound / most:.3g}"), relative=True))
            told = _answer(opened, budget, made.at(budget, several=1))
            found.append({"budget": [str(limit) for limit in budget.limits], **told})
    return {
        "run": str(opened.folder.root),
        "quality": opened.view.quality.as_dict(),
        "learned_from": made.learned_from,
        "coverage": COVERAGE,
        "sweep": found,
        "seconds": time.monotonic() - began,
    }


@dataclass(frozen=True)
class _Opened:
    """A run that is asked.

    Args:
        folder: of the run.
        view: with the costs of the target that is asked for.
        parts: of its study, on that target.
        study: with another target than the run's, or ``None``.
    """

    folder: RunFolder
    view: RunView
    parts: Assembly
    study: StudyConfig | None = None


@contextmanager
def _opened(
    run: str,
    budget: Budget,
    progress: Progress,
    target: str | None,
    python: str | None,
    *,
    retry: bool,
    trust: bool,
) -> Iterator[_Opened]:
    """The run, with its policies timed on another target where they were not yet."""
    folder, view = RunFolder.open(run), RunView.load(run)
    _check_searched(folder, view)
    study_of(folder)  # what cannot be opened again is said before anything is timed
    named = () if target is None else (target,)
    source = from_elsewhere(f"run {folder.root}", named=named, trust=trust)
    with scratch_folder("forecast") as scratch, source:
        if target is None:
            said = "The run did not measure {} of its policies; it has {}."
            _check_known(budget, _names(view), said)
            yield _Opened(folder, view, reopened(folder, view, scratch, progress))
            return
        study = study_there(folder, target, python)
        names = {c.name for c in COSTS if c not in EXTRA or c.name in study.extra_costs()}
        _check_known(budget, names, _NOT_THERE)
        there = run_there(folder, view, study, scratch, progress, retry=retry)
        if not any(t.phase.kind == "search" for t in there.view.compared):
            raise InputError(f"No policy of the run in {folder.root} could be timed on {target}.")
        _check_known(budget, _names(there.view), _NOT_THERE)
        parts = there.parts()
        # of the target nothing was known when the run was made
        written = {k: v for k, v in folder.read_study().items() if k not in ("target", "also_on")}
        resume(folder, there.view.baseline, parts, written)
        yield _Opened(folder, there.view, parts, there.study)


def _check_searched(folder: RunFolder, view: RunView) -> None:
    if not any(t.phase.kind == "search" for t in view.compared):
        raise InputError(
            f"The run in {folder.root} has measured no policy yet, so that nothing is known of any "
            "budget. Go on with --resume."
        )


def _names(view: RunView) -> set[str]:
    """What was measured of policies; of the uncompressed model there is more."""
    of_policies = {name for t in view.compared if t.measurement for name in t.measurement.values}
    return of_policies & {*view.baseline.values}


def _check_known(budget: Budget, names: Container[str], said: str) -> None:
    absent = [BY_NAME[name].word for name in budget.metrics if name not in names]
    if absent:
        known = ", ".join(c.word for c in COSTS if c.word and c.name in names)
        raise InputError(said.format(" and ".join(absent), known))


def _forecaster(opened: _Opened, progress: Progress) -> Forecaster:
    parts = opened.parts
    if opened.study is not None and not parts.latency_kept:
        _log.info(
            "What a policy will take there is learned from layers and some whole models, which "
            "are timed there now: a minute or two for small networks. They are kept."
        )
    parts.predict_latency()
    return Forecaster(_context(opened.folder, opened.view, parts), SECONDS)


def _context(folder: RunFolder, view: RunView, parts: Assembly) -> Context:
    """The search as it stood at its end; what is looked at now is kept beside its records."""
    evaluator, study = parts.evaluator, parts.study
    base = evaluator.baseline
    depends_on, beside = evaluator.screening.depends_on, folder.root / _FORECASTS
    kept = beside / folder.screened.name
    check_output(kept)
    beside.mkdir(exist_ok=True)
    known = ScreenedPolicies(kept, depends_on)
    known.data |= ScreenedPolicies(folder.screened, depends_on).data
    images = Counter(count for _, count in known)
    config = study.search
    if images:  # as many as most were screened on, or the answers would not be found again
        config = config.model_copy(update={"screen_images": images.most_common(1)[0][0]})
    trials = [rejudged(entry.trial, Budget(), base) for entry in view.entries]
    executor = InProcessExecutor(evaluator)
    return Context(parts.space, evaluator, executor, Budget(), config, (), trials, screened=known)


def _answer(opened: _Opened, budget: Budget, expected: Forecast | None) -> dict[str, Any]:
    folder, view = opened.folder, opened.view
    measured = view.under(budget).best
    found: dict[str, Any] = {
        "measured": None if measured is None else _measured(view, measured),
        "expected": None,
        "policy_file": None,
        "commands": [],
    }
    if measured is not None and (
        opened.study is None or opened.study.target.config().table is None
    ):
        there = ["--pick", str(measured.number), *elsewhere(view)]
        found["commands"].append(shlex.join(["autocompress", "export", str(folder.root), *there]))
    if expected is None:
        return found
    file = folder.root / _FORECASTS / f"{expected.policy.digest[:12]}.yaml"
    with replacing(file) as new:
        new.write_text(yaml.safe_dump(expected.policy.as_dict(), sort_keys=False), "utf-8")
    measure = ["autocompress", "evaluate", str(_study_file(opened)), "--policy", str(file)]
    found["commands"].append(shlex.join(measure))
    found["policy_file"] = str(file)
    base = view.baseline.values
    found["expected"] = {
        view.quality.name: _plain(_possible(expected.quality, view.quality)),
        "divergence": expected.divergence,
        **{name: _plain(cost) for name, cost in expected.costs.items()},
        "shares": {
            name: cost.value / base[name]
            for name, cost in expected.costs.items()
            if base.get(name, 0.0) > 0
        },
        "policy": expected.policy.as_dict(),
    }
    return found


def _study_file(opened: _Opened) -> Path:
    """The study that measures where costs were asked for: the run's, or one that is written."""
    if opened.study is None:
        return opened.folder.study
    text = yaml.safe_dump(opened.study.model_dump(mode="json"), sort_keys=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    file = opened.folder.root / _FORECASTS / f"study-{digest}.yaml"
    with replacing(file) as new:
        new.write_text(text, "utf-8")
    return file


def _measured(view: RunView, trial: Trial) -> dict[str, Any]:
    values = trial.measurement.values if trial.measurement else {}
    names = (view.quality.name, *(metric.name for metric in view.objectives[1:]))
    told = {name: values[name] for name in names if name in values}
    return {"trial": trial.number, "phase": trial.phase.kind, **told}


def _possible(found: Interval, quality: Metric) -> Interval:
    """An interval without what a fraction cannot be."""
    if not quality.fraction or not math.isfinite(found.low):
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def _plain(found: Interval) -> dict[str, float | None]:
    """JSON knows no infinity: ``null`` is an end that is not known."""
    ends = {"value": found.value, "low": found.low, "high": found.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}
