"""The whole study: profile, search, recover, verify, report."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.phases import run_baselines, run_recovery, run_verify
from autocompress.controller.stop import stopping_on_interrupt
from autocompress.errors import InputError
from autocompress.execute import make_executor
from autocompress.measure.lock import machine_lock
from autocompress.mlflow.sink import MlflowSink
from autocompress.report.html import write_report
from autocompress.report.tables import write_summary
from autocompress.results.answer import decide, judged
from autocompress.results.metric import objectives
from autocompress.results.trial import Trial, TrialState
from autocompress.run.feasibility import check_formula_budget, check_latency_budget
from autocompress.run.resuming import as_begun, known_baseline
from autocompress.run.study import StudyConfig
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.screened import ScreenedPolicies
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.controller.loop import StopReason
    from autocompress.controller.optuna_study import BaseSampler
    from autocompress.controller.progress import SearchProgress
    from autocompress.controller.stop import StopFlag
    from autocompress.run.assembly import Assembly


class Watcher(Protocol):
    """Is told how far a study is."""

    def preparing(self, text: str, fraction: float) -> None:
        """What is going on before the first trial, and how much of it is done, from 0 to 1."""

    def progressed(self, state: SearchProgress) -> None:
        """The state after every trial."""


@dataclass
class Finished:
    """A run that came to its end.

    Args:
        folder, view, parts: of the run.
        summary: the ``--json`` object.
        stopped: why the search phase ended.
    """

    folder: RunFolder
    view: RunView
    parts: Assembly
    summary: dict[str, Any]
    stopped: StopReason


def run_study(
    study: StudyConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    new_baseline: bool = False,
    model: Any = None,
    data: Any = None,
    sampler: BaseSampler | None = None,
    watcher: Watcher | None = None,
) -> Finished:
    """Run a study to its end, or go on with one.

    Args:
        study: as read.
        out: folder of the run; ``runs/NAME`` by default.
        resume: take up the run in that folder; finished trials are not repeated.
        new_baseline: set them aside where model, data, target or settings are others by now.
        model, data: objects in place of the study's factories.
        sampler: one of Optuna's, in place of the study's.
        watcher: told how far it is.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    from autocompress.controller.samplers import check_sampler
    from autocompress.run.assembly import assemble, silent

    check_sampler(study.search.sampler if sampler is None else sampler)
    preparing = silent if watcher is None else watcher.preparing
    config = study.search
    root = out or Path("runs") / study.name
    if new_baseline and not resume:
        raise InputError("--new-baseline is for a run that goes on; give --resume too.")
    if not resume and RunFolder(root).is_run:
        RunFolder.create(root)  # says that there is a run
    if resume and not new_baseline:
        study = as_begun(study, RunFolder(root))
    _check_sent(study, data)
    with _nothing_left_behind(root):
        parts = assemble(study, root / "models", model=model, data=data, progress=preparing)
        check_formula_budget(parts)
        before = None
        if resume:
            before = known_baseline(RunFolder(root), parts, new_baseline=new_baseline)
        if before is not None:
            parts.evaluator.measurer.set_baseline(before)
        preparing("latency table", 0.0)
        parts.predict_latency()
        check_latency_budget(parts)
        folder = RunFolder.create(root, resume=resume)
        folder.write_study(parts.study.model_dump(mode="json"))
        if before is None:
            folder.write_baseline(parts.evaluator.baseline)
    preparing("first trial", 0.0)
    with Journal(folder) as journal:
        return _phases(parts, config, journal, sampler, watcher)


def _check_sent(study: StudyConfig, data: Any) -> None:
    """Refuse what other processes cannot be given, before anything is measured.

    Raises:
        InputError: a function of the data or of its task that cannot be found by its name.
    """
    if study.workers == 1 and study.executor == "local":
        return
    for name in ("options", "task", "metric", "loss", "augment"):
        try:
            pickle.dumps(getattr(data, name, None))
        except Exception as error:  # pickle raises whatever it stumbles on
            raise InputError(
                f"With several workers, other processes are given the data's `{name}`, which "
                f"cannot be pickled ({error}). Define its functions at the top of a module, not as "
                "lambdas, or use `workers: 1`."
            ) from None


@contextmanager
def _nothing_left_behind(root: Path) -> Iterator[None]:
    """Remove the folder again if the study cannot begin; one that was there before stays."""
    existed = root.exists()
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise


def _phases(
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    sampler: BaseSampler | None,
    watcher: Watcher | None,
) -> Finished:
    """Search, baselines, recovery, verification; then what the run leaves."""
    from autocompress.controller.samplers import make_proposer

    mlflow = _mlflow(parts, journal)
    with stopping_on_interrupt() as stop:
        context = _context(parts, config, journal, mlflow, stop, watcher)
        try:
            result = run_search(context, make_proposer(context, sampler))
            baselines = run_baselines(context)
            run_recovery(context, parts.study.recovery)
            run_verify(context, lambda: _answer(context, parts.study))
        finally:
            context.executor.close(cancel=bool(stop))
    return _finish(journal.folder, parts, baselines, mlflow, result.stopped)


def _context(
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    mlflow: MlflowSink | None,
    stop: StopFlag,
    watcher: Watcher | None,
) -> Context:
    study = parts.study
    # before workers are started: a damaged file would leave them behind
    screened = ScreenedPolicies(journal.folder.screened, parts.evaluator.screening.depends_on)
    trials = [_rejudged(trial, parts) for trial in journal.load()]
    executor = make_executor(
        study.executor,
        study.workers,
        parts.evaluator,
        parts.evaluator_factory(),
        ray_address=study.ray_address,
    )
    return Context(
        parts.space,
        parts.evaluator,
        executor,
        study.limits(),
        config,
        [journal, *([mlflow] if mlflow is not None else [])],
        trials,
        stop,
        None if watcher is None else watcher.progressed,
        screened,
    )


def _rejudged(trial: Trial, parts: Assembly) -> Trial:
    """A trial of an earlier session under the budget of this one; rejections are reconsidered."""
    budget, base = parts.study.limits(), parts.evaluator.baseline
    if trial.state is not TrialState.REJECTED or trial.measurement is None:
        return judged(trial, budget, base)
    violations = budget.violations(trial.measurement.values, base.values)
    if any(v > 0 for v in violations.values()):
        return replace(trial, violations=violations)
    reason = "rejected under an earlier budget"
    return replace(trial, state=TrialState.DUPLICATE, reason=reason)


def _answer(context: Context, study: StudyConfig) -> Trial | None:
    """The answer among the trials so far."""
    return decide(
        context.ledger.trials,
        context.evaluator.baseline,
        context.objectives,
        study.limits(),
        study.max_accuracy_drop,
        study.max_quality_drop,
    ).best


def _mlflow(parts: Assembly, journal: Journal) -> MlflowSink | None:
    tracking = parts.study.tracking
    if not tracking.mlflow:
        return None
    return MlflowSink(
        journal,
        parts.evaluator.baseline,
        experiment=tracking.experiment or parts.study.name,
        uri=tracking.uri,
        objectives=objectives(parts.study.search.objectives, parts.evaluator.baseline.metrics),
        layers=[layer.name for layer in parts.inventory.layers],
        say=logging.getLogger("autocompress.mlflow").warning,
        gate=lambda: machine_lock(exclusive=False),
    )


def _finish(
    folder: RunFolder,
    parts: Assembly,
    baselines: dict[str, int],
    mlflow: MlflowSink | None,
    stopped: StopReason,
) -> Finished:
    """Write summary, report, recipe and model, and close MLflow."""
    from autocompress.run.recipes import write_recipe

    folder.write_baseline(parts.evaluator.measurer.baseline_test, "test")
    study = parts.study
    view = RunView.load(
        folder,
        baselines=baselines,
        layers=tuple(layer.name for layer in parts.inventory.layers),
        cannot_prune=parts.inventory.cannot_prune,
        budget=study.limits(),
        objectives=objectives(study.search.objectives, parts.evaluator.baseline.metrics),
    )
    _forget_answer(folder, parts.evaluator.measurer.target.suffix)
    model = _keep_models(folder, parts, view)
    summary = write_summary(folder, view, model)
    summary["stopped"] = stopped
    if view.best is not None:
        write_recipe(view, folder, view.best, folder.recipes / "best.yaml")
    write_report(folder, view)
    if mlflow is not None:
        mlflow.close(view, model if study.tracking.register_best else None)
    return Finished(folder, view, parts, summary, stopped)


def _forget_answer(folder: RunFolder, suffix: str) -> None:
    """A run that goes on may have had another answer, or one where it has none now."""
    names = [folder.recipes / "best.yaml", folder.recipes / "best.safetensors"]
    for path in (*names, folder.models / f"best{suffix}"):
        path.unlink(missing_ok=True)


def _keep_models(folder: RunFolder, parts: Assembly, view: RunView) -> Path | None:
    """Give the verified files readable names; the answer's becomes ``best``.

    An interrupted study verified nothing; a recovered answer's own file is still there.
    """
    found = None
    for trial in view.front:
        last = view.verified(trial) or trial
        path = parts.evaluator.model_path(last.policy, last.phase)
        if not path.exists():
            continue
        named = folder.models / f"trial-{trial.number}{path.suffix}"
        shutil.copyfile(path, named)
        if view.best is not None and trial.number == view.best.number:
            found = folder.models / f"best{path.suffix}"
            shutil.copyfile(path, found)
    return found
