"""The whole study: profile, search, recover, verify, report."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.guided.proposer import GuidedProposer
from autocompress.controller.loop import run_search
from autocompress.controller.phases import run_recovery, run_reference_policies, run_verify
from autocompress.controller.samplers import check_sampler, make_proposer
from autocompress.controller.shared_trials import SharedTrials, open_storage
from autocompress.controller.stop import StopFlag, stopping_on_interrupt
from autocompress.controller.time_budget import FINISH_SHARE, RECOVERY_SHARE, TimeBudget
from autocompress.errors import DeviceLost, InputError
from autocompress.execute import make_executor
from autocompress.execute.pool import check_main, import_early
from autocompress.machine.facts import machine_facts
from autocompress.machine.lock import after_timing
from autocompress.machine.progress import Progress, silent
from autocompress.machine.scratch import scratch_folder
from autocompress.machine.waiting import ends_within
from autocompress.measure.quiet import PATIENCE_S, WAIT_VARIABLE
from autocompress.mlflow.sink import MlflowSink
from autocompress.policy.files import as_ours
from autocompress.policy.writing import without_password
from autocompress.results.answer import Decision, decide, rejudged
from autocompress.results.metric import Measurement, objectives
from autocompress.run.assembly import Assembly, EvaluatorFactory, assemble
from autocompress.run.cascade_phase import cascade_phase
from autocompress.run.cascading import asked_of, check_data, check_target
from autocompress.run.ending import EndedRun, end_run
from autocompress.run.feasibility import can_be_met, settle_space
from autocompress.run.resuming import as_begun, known_baseline
from autocompress.run.study import StudyConfig
from autocompress.run.variables import resolve_variables
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.lock import RunLock
from autocompress.track.screened import ScreenedPolicies

if TYPE_CHECKING:
    from autocompress.controller.loop import StopReason
    from autocompress.controller.optuna_study import BaseSampler
    from autocompress.controller.progress import SearchProgress
    from autocompress.controller.protocols import Outcome


_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told how far a study is."""

    def preparing(self, text: str, fraction: float) -> None:
        """What is going on before the first trial, and how much of it is done, from 0 to 1."""

    def progressed(self, state: SearchProgress) -> None:
        """The state after every trial."""


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
    give_up: Callable[[], object] | None = None,
    assembled: Callable[..., Assembly] = assemble,
) -> EndedRun:
    """Run a study to its end, or go on with one.

    Args:
        study: as read.
        out: folder of the run; ``runs/NAME`` by default.
        resume: take up the run in that folder; finished trials are not repeated.
        new_baseline: set them aside where model, data, target or settings are others by now.
        model, data: objects in place of the study's factories.
        sampler, watcher: one of Optuna's, in place of the study's; told how far it is.
        give_up: ends this process where an evaluation hangs in native code; ``None`` waits for it.
        assembled: puts the parts of the study together, as ``assemble`` does.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    check_sampler(study.search.sampler if sampler is None else sampler)
    if study.tracking.storage is not None:
        open_storage(str(resolve_variables(study.tracking.storage)))
    budget = TimeBudget(study.timeout_s, refine_s=study.timed_refine().seconds or 0.0)
    budget.recovery_share = RECOVERY_SHARE if study.trains else FINISH_SHARE
    budget.cascade = study.dynamic is not None
    preparing = _watched(budget, silent if watcher is None else watcher.preparing)
    if study.dynamic is not None:
        check_target(study.target.config())
    if new_baseline and not resume:
        raise InputError("--new-baseline is for a run that goes on; give --resume too.")
    folder = RunFolder(out or Path("runs") / study.name)
    existed = folder.root.exists()
    folder.check_free(resume=resume)
    if resume and not new_baseline:
        study = as_begun(study, folder)
    _check_sent(study, data)
    with _files_told(), RunLock(folder) as lock, _waiting_at_most(budget):
        if study.executor == "local" and study.workers > 1:
            import_early()
        with _nothing_left_behind(folder, existed):
            parts = assembled(study, folder.models, model=model, data=data, progress=preparing)
            check_data(parts, asked_of(study))
            settle_space(parts)
            before = known_baseline(folder, parts, new_baseline=new_baseline) if resume else None
            _predict_and_begin(parts, folder, before, preparing)
        preparing("first trial", 0.0)
        with Journal(folder, lock) as journal:
            return _phases(parts, study.search, journal, budget, sampler, watcher, give_up)


@contextmanager
def _waiting_at_most(budget: TimeBudget) -> Iterator[None]:
    """Bound waits for a lost device, and for a quiet machine in workers too where nobody does."""
    seconds = budget.waiting_s
    with ends_within(budget.left_s):
        if math.isinf(seconds) or WAIT_VARIABLE in os.environ:
            yield
            return
        os.environ[WAIT_VARIABLE] = str(min(seconds, PATIENCE_S))
        try:
            yield
        finally:
            del os.environ[WAIT_VARIABLE]


def _watched(budget: TimeBudget, preparing: Progress) -> Progress:
    """Tells how far preparation is, and ends it where the study's time is over before."""

    def tell(text: str, fraction: float) -> None:
        budget.check_prepared(text, fraction)
        preparing(text, fraction)

    return tell


def _predict_and_begin(
    parts: Assembly, folder: RunFolder, before: Measurement | None, preparing: Progress
) -> None:
    """See what the search takes over, and that the budget can be met; write what the run is."""
    _log.debug("The search takes over %d policies.", len(parts.warm.policies))
    if before is not None:
        parts.evaluator.measurer.set_baseline(before)
    can_be_met(parts, preparing, timed=True).check()
    RunFolder.create(folder.root, resume=True)
    plain = parts.study.model_dump(mode="json")
    for name in ("uri", "storage"):
        if plain["tracking"][name] is not None:
            plain["tracking"][name] = without_password(plain["tracking"][name])
    folder.write_study(plain)
    if before is None:
        folder.write_baseline(parts.evaluator.baseline)


def _check_sent(study: StudyConfig, data: Any) -> None:
    """Refuse what other processes cannot be given, before anything is measured.

    Raises:
        InputError: a script that starts its search again where it is imported, or a function of
            the data or of its task that cannot be found by its name.
    """
    if study.workers == 1 and study.executor == "local":
        return
    if study.executor == "local":
        check_main()
    for name in ("options", "task", "metric", "loss", "augment"):
        try:
            pickle.dumps(getattr(data, name, None))
        except Exception as error:  # pickle raises whatever it stumbles on
            raise InputError(
                f"With several workers, others are given the data's `{name}`, which cannot be "
                f"pickled ({error}). Define its functions at the top of a module, not as lambdas, "
                "or use `workers: 1`."
            ) from None


@contextmanager
def _files_told() -> Iterator[None]:
    """Say in a sentence what the system says of the run's files, and how to go on."""
    try:
        yield
    except OSError as error:
        remedy = (
            "What is finished is kept. Mend that (or choose another folder with --out) and go on "
            "with --resume."
        )
        told = as_ours(error, remedy)
        if told is None:
            raise
        raise told from None


@contextmanager
def _nothing_left_behind(folder: RunFolder, existed: bool) -> Iterator[None]:
    """Remove the folder again if the study cannot begin; one that was there before stays."""
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _phases(
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    budget: TimeBudget,
    sampler: BaseSampler | None,
    watcher: Watcher | None,
    give_up: Callable[[], object] | None,
) -> EndedRun:
    """Search, reference policies, recovery, verification; then what the run leaves."""
    mlflow = _mlflow(parts, journal)
    with scratch_folder("study") as shared, stopping_on_interrupt() as stop:
        factory = _factory(parts, shared)
        context = _context(parts, config, journal, budget, mlflow, stop, watcher, give_up, factory)
        references: dict[str, int] = {}
        ended: StopReason = "device lost"
        try:
            proposer = make_proposer(context, sampler)
            ended = run_search(context, proposer).stopped
            references = run_reference_policies(context)
            run_recovery(context, parts.study.recovery)
            run_verify(context, lambda: _decision(context, parts.study))
        except DeviceLost as error:  # what was measured before is kept and answered with
            _log.error("%s", error)
            ended = "device lost"
        finally:
            context.executor.close(cancel=bool(stop))
        skipped = bool(stop) or ended == "device lost"
        failed = "" if skipped else cascade_phase(parts, context, journal, mlflow)
    # asked to end after the search, later phases are what is missing
    stopped: StopReason = "interrupted" if stop else ended
    losses = proposer.sensitivity.losses if isinstance(proposer, GuidedProposer) else []
    return end_run(journal.folder, parts, references, mlflow, stopped, budget, losses, failed)


def _context(
    parts: Assembly,
    config: SearchConfig,
    journal: Journal,
    budget: TimeBudget,
    mlflow: MlflowSink | None,
    stop: StopFlag,
    watcher: Watcher | None,
    give_up: Callable[[], object] | None,
    factory: EvaluatorFactory,
) -> Context:
    study = parts.study

    def stuck(outcome: Outcome) -> None:
        number = outcome.job.number
        _log.error("Trial %d hangs and cannot be interrupted: %s", number, outcome.error)
        if give_up is not None:
            context.end(outcome)
            give_up()

    # before workers are started: a damaged file would leave them behind
    screened = ScreenedPolicies(journal.folder.screened, parts.evaluator.screening.depends_on)
    base = parts.evaluator.baseline
    trials = [rejudged(trial, study.limits(), base) for trial in journal.load()]
    shared = _shared(parts, config, journal)
    executor = make_executor(
        study.executor,
        study.workers,
        parts.evaluator,
        factory,
        ray_address=study.ray_address,
        cpus=study.resources.cpus,
        gpus=study.resources.gpus,
        stuck=stuck,
    )
    sinks = [sink for sink in (journal, shared, mlflow) if sink is not None]
    context = Context(
        parts.space,
        parts.evaluator,
        executor,
        study.limits(),
        config,
        sinks,
        trials,
        stop,
        None if watcher is None else watcher.progressed,
        screened,
        shared,
        budget,
        parts.warm,
    )
    return context


def _factory(parts: Assembly, shared: Path) -> EvaluatorFactory:
    """For workers; those of this machine map what was handed over from a file."""
    alone = parts.study.workers == 1 or parts.study.executor != "local"
    return parts.evaluator_factory(None if alone else shared)


def _shared(parts: Assembly, config: SearchConfig, journal: Journal) -> SharedTrials | None:
    """The storage that the study's trials are mirrored to, if it names one."""
    url = parts.study.tracking.storage
    if url is None:
        return None
    return SharedTrials(
        str(resolve_variables(url)),
        parts.study.tracking.experiment or parts.study.name,
        parts.space,
        objectives(config.objectives, parts.evaluator.baseline.metrics),
        journal.folder.identity(),
        _compared(parts),
    )


def _compared(parts: Assembly) -> dict[str, str]:
    """What trials of several drivers must have in common for their figures to mean the same."""
    quality, facts = parts.task.quality, machine_facts()
    return {
        **parts.identity,
        "target": json.dumps(parts.evaluator.measurer.target.describe(), sort_keys=True),
        "settings": json.dumps(parts.study.settings.model_dump(mode="json"), sort_keys=True),
        "metric": f"{quality.name} ({quality.goal} it)",
        "machine": f"{facts['cpu']}, {facts['usable_cores']} cores",
    }


def _decision(context: Context, study: StudyConfig) -> Decision:
    """What is answered with the trials so far."""
    return decide(
        context.ledger.trials,
        context.evaluator.baseline,
        context.objectives,
        study.limits(),
        study.max_accuracy_drop,
        study.max_quality_drop,
    )


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
        pause=after_timing,
    )
