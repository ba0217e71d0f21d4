"""The whole study: profile, search, recover, verify, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from autocompress.commands.display import SearchDisplay, console, status
from autocompress.controller.config import RecoveryPlan, SearchConfig
from autocompress.errors import InputError
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.run.feasibility import check_formula_budget, check_latency_budget
from autocompress.run.study import StudyConfig
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.screened import ScreenedPolicies
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.controller.context import Context
    from autocompress.controller.loop import StopReason
    from autocompress.controller.protocols import Sink
    from autocompress.mlflow.sink import MlflowSink
    from autocompress.run.assembly import Assembly


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


def search(config: StudyConfig, out: Path | None, *, resume: bool, quiet: bool) -> dict[str, Any]:
    """Run a study from the command line and print its end."""
    done = run_study(config, out, resume=resume, quiet=quiet)
    if not quiet:
        from autocompress.commands.ending import show_result

        show_result(done, console())
    return done.summary


def search_config(study: StudyConfig) -> SearchConfig:
    """The ``search`` section, checked."""
    found: SearchConfig = _section(SearchConfig, study.search, "search")
    return found


def _section(kind: Any, data: dict[str, Any], where: str) -> Any:
    from pydantic import ValidationError

    from autocompress.errors import nearest

    for key in data:
        if key not in kind.model_fields:
            raise InputError(
                f"`{where}` has an unknown key {key!r}; {nearest(key, kind.model_fields)}"
            )
    try:
        return kind(**data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise InputError(f"`{where}.{at}`: {first['msg']}, got {first['input']!r}.") from None


def run_study(
    study: StudyConfig,
    out: Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    model: Any = None,
    data: Any = None,
) -> Finished:
    """Run a study to its end, or go on with one.

    Args:
        study: as read.
        out: folder of the run; ``runs/NAME`` by default.
        resume: take up the run in that folder; finished trials are not repeated.
        quiet: nothing on the terminal.
        model, data: objects in place of the study's factories.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    from autocompress.run.assembly import assemble

    config = search_config(study)
    root = out or Path("runs") / study.name
    if not resume and RunFolder(root).is_run:
        RunFolder.create(root)  # says that there is a run
    with status(quiet) as say, _nothing_left_behind(root):
        parts = assemble(study, root / "models", model=model, data=data, progress=say)
        check_formula_budget(parts)
        before = _known_baseline(RunFolder(root), parts) if resume else None
        if before is not None:
            parts.evaluator.set_baseline(before)
        say("latency table", 0.0)
        parts.predict_latency()
        baseline = parts.evaluator.baseline
        check_latency_budget(parts)
        folder = RunFolder.create(root, resume=resume)
        folder.write_study(parts.study.model_dump(mode="json"))
        if before is None:
            folder.write_baseline(baseline)
    with Journal(folder) as journal:
        return _phases(
            folder, parts, config, journal, baseline, quiet=quiet, model=model, data=data
        )


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


def _known_baseline(folder: RunFolder, parts: Assembly) -> Measurement | None:
    """The uncompressed model as the run that goes on measured it.

    Raises:
        InputError: that run was made on another model or other weights.
    """
    before = folder.read_baseline() if folder.is_run else None
    if before is None:
        return None
    inventory, known = parts.inventory, before.context.get("identity", {})
    if known and (known["architecture"], known["weights"]) != (
        inventory.architecture,
        inventory.weights,
    ):
        raise InputError(
            f"The run in {folder.root} was made on another model or other weights; "
            "choose another folder with --out."
        )
    return before


def _phases(
    folder: RunFolder,
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    baseline: Measurement,
    *,
    quiet: bool,
    model: Any,
    data: Any,
) -> Finished:
    from autocompress.controller.loop import run_search
    from autocompress.controller.phases import run_baselines, run_recovery, run_verify
    from autocompress.controller.samplers import make_proposer
    from autocompress.controller.stop import stopping_on_interrupt

    mlflow = _mlflow(parts, journal, baseline, quiet)
    sinks: list[Sink] = [journal, *([mlflow] if mlflow is not None else [])]
    with SearchDisplay(quiet) as display, stopping_on_interrupt() as stop:
        context = _context(
            parts, config, sinks, journal, stop, display.update, model=model, data=data
        )
        try:
            result = run_search(context, make_proposer(context))
            baselines = run_baselines(context)
            recovery = parts.study.recovery
            run_recovery(
                context,
                RecoveryPlan(
                    epochs=recovery.epochs,
                    rungs=recovery.rungs,
                    candidates=recovery.candidates,
                    compare_distillation=recovery.compare_distillation,
                    seed=config.seed,
                ),
            )
            chosen = run_verify(context, lambda: _answer(context, parts.study))
        finally:
            context.executor.close(cancel=bool(stop))
    return _finish(folder, parts, baselines, chosen, mlflow, result.stopped)


def _context(
    parts: Assembly,
    config: SearchConfig,
    sinks: list[Sink],
    journal: Journal,
    stop: Any,
    progress: Callable[[Any], None],
    *,
    model: Any,
    data: Any,
) -> Context:
    from autocompress.controller.context import Context
    from autocompress.execute import make_executor
    from autocompress.run.assembly import EvaluatorFactory

    study = parts.study
    # before workers are started: a damaged file would leave them behind
    screened = ScreenedPolicies(journal.folder.screened, parts.evaluator.screened_with)
    trials = _rejudged(journal.load(), parts)
    factory = EvaluatorFactory(
        study.model_dump(mode="json"),
        str(parts.folder),
        parts.evaluator.baseline.as_dict(),
        model,
        data,
    )
    executor = make_executor(
        study.executor, study.workers, parts.evaluator, factory, ray_address=study.ray_address
    )
    return Context(
        parts.space,
        parts.evaluator,
        executor,
        study.limits(),
        config,
        sinks,
        trials,
        stop,
        progress,
        screened,
    )


def _rejudged(trials: list[Trial], parts: Assembly) -> list[Trial]:
    """Trials of earlier sessions under the budget of this one; rejections are reconsidered."""
    from dataclasses import replace

    budget, base = parts.study.limits(), parts.evaluator.baseline.values
    found = []
    for trial in trials:
        if trial.state == "COMPLETE" and trial.measurement is not None:
            violations = budget.violations(trial.measurement.values, base)
            found.append(replace(trial, violations=violations))
        elif trial.state == "REJECTED" and trial.measurement is not None:
            violations = budget.violations(trial.measurement.values, base)
            if any(v > 0 for v in violations.values()):
                found.append(replace(trial, violations=violations))
            else:
                found.append(
                    replace(
                        trial,
                        state=type(trial.state).DUPLICATE,
                        reason="rejected under an earlier budget",
                    )
                )
        else:
            found.append(trial)
    return found


def _answer(context: Context, study: StudyConfig) -> Trial | None:
    """The chosen trial: the most accurate within the budget.

    With a largest accuracy drop, it is the cheapest that keeps to it, and no trial if none does.
    """
    front = context.ledger.front()
    if not len(front):
        return None
    if study.max_accuracy_drop is None:
        return front.pick("best")
    least = context.evaluator.baseline["accuracy"] - study.max_accuracy_drop / 100
    keeping = [t for t in front if t.measurement and t.measurement["accuracy"] >= least]
    return keeping[0] if keeping else None


def _mlflow(
    parts: Assembly, journal: Journal, baseline: Measurement, quiet: bool
) -> MlflowSink | None:
    tracking = parts.study.tracking
    if not tracking.mlflow:
        return None
    from autocompress.measure.lock import machine_lock
    from autocompress.mlflow.sink import MlflowSink
    from autocompress.results.metric import metric

    objectives = tuple(metric(n) for n in search_config(parts.study).objectives)
    return MlflowSink(
        journal,
        baseline,
        experiment=tracking.experiment or parts.study.name,
        uri=tracking.uri,
        objectives=objectives,
        layers=[layer.name for layer in parts.inventory.layers],
        say=(lambda text: None) if quiet else Console(stderr=True).print,
        gate=lambda: machine_lock(exclusive=False),
    )


def _finish(
    folder: RunFolder,
    parts: Assembly,
    baselines: dict[str, int],
    chosen: Trial | None,
    mlflow: MlflowSink | None,
    stopped: StopReason,
) -> Finished:
    """Write summary, report, recipe and model, and close MLflow."""
    from autocompress.report.html import write_report
    from autocompress.report.tables import write_summary
    from autocompress.results.metric import metric
    from autocompress.run.replay import write_recipe

    folder.write_baseline(parts.evaluator.baseline_test, "test")
    study = parts.study
    view = RunView.load(
        folder,
        baselines=baselines,
        chosen=chosen.number if chosen is not None else None,
        layers=tuple(layer.name for layer in parts.inventory.layers),
        budget=study.limits(),
        objectives=tuple(metric(n) for n in search_config(study).objectives),
    )
    model = _keep_models(folder, parts, view)
    summary = write_summary(folder, view, model)
    summary["stopped"] = stopped
    if view.best is not None:
        write_recipe(view, folder, view.best, folder.recipes / "best.yaml")
    write_report(folder, view)
    if mlflow is not None:
        mlflow.close(view, model if study.tracking.register_best else None)
    return Finished(folder, view, parts, summary, stopped)


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
