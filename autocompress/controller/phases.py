"""The phases around the search: reference policies at the budget, recovery, verification."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import cast

from autocompress.controller.context import Context
from autocompress.controller.promotion import by_band, promoted
from autocompress.controller.protocols import Evaluator, Job, TrainingEvaluator
from autocompress.controller.starts import ladders, named, uniform_by_cost, uniform_near
from autocompress.controller.time_budget import LOOKING_SHARE, SLOWER, fit_recovery, told
from autocompress.policy.costs import BY_NAME
from autocompress.policy.policy import Distill, Policy
from autocompress.policy.recovery import RecoveryConfig
from autocompress.policy.space import Assignment
from autocompress.results.answer import Decision, best_of, rank
from autocompress.results.trial import SEARCH, Phase, Trial, TrialState

VERIFIED = 6
"""Front members that are scored on the test split, at most."""
_NEAR = 0.02
"""Share of a limit by which timings of the same file differ from one moment to the next."""


def run_reference_policies(context: Context) -> dict[str, int]:
    """What a person would try by hand at the same budget: uniform, named (all-int8), random.

    Policies that the search evaluated already are not evaluated again.

    Returns:
        ``uniform``, the names that techniques give (``int8``) and ``random`` to the number of the
        trial that shows the best of each; a kind that the space does not know is left out.
    """
    wanted = {
        "uniform": uniform_near(context) or uniform_by_cost(context)[:1],
        **{name: [levels] for name, levels in named(context.space).items()},
        "random": _random(context),
    }
    # a milder one may have been measured within the budget, whatever the estimate says now
    by_hand = [levels for origin, levels in ladders(context.space) if origin == "uniform"]
    wanted["uniform"] += [levels for levels in by_hand if _measured(context, levels)]
    best: dict[str, int] = {}
    for kind, assignments in wanted.items():
        trials = [t for a in assignments if (t := _settled(context, a, kind)) is not None]
        numbers = {t.number for t in trials}
        # an earlier session may have verified them
        mine = (t for t in context.ledger.scored() if t.number in numbers)
        found = best_of(mine, context.objectives)
        if found is not None:
            best[kind] = found.number
    return best


def _random(context: Context) -> list[Assignment]:
    """Random policies that the estimate puts within the budget."""
    draw = random.Random(context.config.seed + 7)
    found: list[Assignment] = []
    for _ in range(2000):
        if len(found) >= context.config.random_references:
            break
        # an untrained student is at chance, which would flatter the search
        levels = context.space.draw(draw)
        if context.feasibility.likely(context.estimate(levels)):
            found.append(levels)
    return found


def _measured(context: Context, assignment: Assignment) -> bool:
    known = context.ledger.known(context.space.decode(assignment))
    return known is not None and known.state is TrialState.COMPLETE


def _settled(context: Context, assignment: Assignment, origin: str) -> Trial | None:
    """The trial of an assignment: the one there is, or a new one."""
    policy = context.space.decode(assignment)
    known = context.ledger.known(policy)
    if known is not None or context.stop:
        return known
    job = Job(context.ledger.number(), policy, SEARCH, context.config.seed, origin)
    done = context.run_jobs([job], "references")
    return done[0] if done else None


def run_recovery(context: Context, config: RecoveryConfig) -> None:
    """Fine-tune the best of each cost band; the next rung opens while the order is in doubt.

    Without epochs nothing is trained, but the candidates are finished. Each rung trains from the
    stitched model for twice the epochs of the one before, annealed to zero, so that qualities of
    one rung can be compared. Who goes on, and how many: ``promotion.promoted``.
    """
    config = _within_time(context, config)
    if config.epochs <= 0:
        run_finish(context, config)
        return
    chosen = candidates(context, config.candidates)
    epochs = config.epochs
    for rung in range(1, config.rungs + 1):
        phase = Phase("recover", epochs, rung)
        done = _recover(context, config, chosen, phase)
        trained = any(t.state is TrialState.COMPLETE for t in done)
        if context.time.total_s is not None and not trained:
            run_finish(context, config)  # training failed, or took too long: what time is left
            return
        if context.stop or rung == config.rungs:
            return
        chosen = promoted(done, _untrained(context, done), context.config.objectives[-1])
        if len(chosen) < 2:
            return
        epochs *= 2


def knows_epochs(evaluator: Evaluator) -> bool:
    """Whether an evaluator tells how long training takes; one with ``epoch_s = None`` does not."""
    return getattr(type(evaluator), "epoch_s", None) is not None


def _within_time(context: Context, config: RecoveryConfig) -> RecoveryConfig:
    """As much of the recovery as fits into the study's time, said where that is less than asked."""
    budget, evaluator = context.time, context.evaluator
    chosen = candidates(context, config.candidates) if config.epochs > 0 else []
    if budget.total_s is None or not chosen or not knows_epochs(evaluator):
        return config
    durations = context.ledger.durations
    trained = cast(TrainingEvaluator, evaluator)
    found = trained.epoch_s(chosen[0].policy, LOOKING_SHARE * budget.left_s)
    budget.epoch_s = SLOWER * found
    left = budget.left_s - budget.kept_s("recover", durations)
    built = durations.expected_s(FINISHED)
    fitting = fit_recovery(config, left, budget.epoch_s, built, context.executor.slots)
    if fitting != config:
        budget.note(
            f"Recovery fits the time left ({max(0.0, left):.0f} s, {found:.2g} s per "
            f"epoch): {told(fitting)} instead of {told(config)}."
        )
    return fitting


FINISHED = Phase("recover", 0.0, 1)
"""Carried out as for the last phase (``settings.finish``), but not trained."""


def run_finish(context: Context, config: RecoveryConfig) -> None:
    """Finish the best trials within the budget without training, and score them on val.

    The search scores policies by a quick reconstruction; the thorough one changes their order, so
    that the answer is chosen among finished ones. Policies that only set bits are as good as they
    get, and are left out.
    """
    done = [t for t in context.ledger.scored() if t.phase == SEARCH and t.feasible]
    repairable = [t for t in _safest(done) if t.policy.repairable]
    seed = context.config.seed
    jobs = [
        Job(context.ledger.number(), t.policy, FINISHED, seed, "finish", t.number)
        for t in repairable[: config.candidates]
        if context.ledger.known(t.policy, FINISHED) is None
    ]
    context.run_jobs(jobs, "finish", lambda job: True)


def candidates(context: Context, count: int) -> list[Trial]:
    """Trials worth training: the best within the budget, then the best per cost band.

    Trials that keep clear of every measured limit go first: one that is near to it may be over it
    when it is measured again, and all its training is then lost. It can still be the answer as it
    is. Bands split the feasible costs evenly; without a feasible trial the nearest to the budget
    are taken, since training does not change their cost but shows what they would reach. Untrained
    students know nothing and show nothing, so each one within the budget is trained as well.
    """
    done = [t for t in context.ledger.scored() if t.phase == SEARCH]
    fitting = _safest([t for t in done if t.feasible])
    students = [t for t in fitting if t.policy.student is not None]
    fitting = [t for t in fitting if t.policy.student is None]
    if not fitting and students:
        return students
    if not fitting:
        nearest = best_of(done, context.objectives)
        return [] if nearest is None else [nearest]
    return by_band(fitting, context.config.objectives[-1], count) + students


def _safest(feasible: Sequence[Trial]) -> list[Trial]:
    """The best first of those that keep clear of all limits that are measured, then of the rest."""

    def near(trial: Trial) -> bool:
        measured = (v for m, v in trial.constraints.items() if BY_NAME[m].source != "formula")
        return any(excess > -_NEAR for excess in measured)

    return sorted(feasible, key=lambda t: (near(t), *rank(t)))


def _recover(
    context: Context, config: RecoveryConfig, chosen: Sequence[Trial], phase: Phase
) -> list[Trial]:
    jobs, known = [], []
    seed = context.config.seed
    for place, parent in enumerate(chosen):
        origin = (
            parent
            if parent.phase == SEARCH
            else next(t for t in context.ledger.trials if t.number == parent.parent)
        )
        variants = [parent.policy]
        if config.compare_distillation and place == 0 and phase.rung == 1:
            plain = Policy(parent.policy.layers, None, parent.policy.student)
            variants = [plain, Policy(plain.layers, Distill(), plain.student)]
        for policy in variants:
            before = context.ledger.known(policy, phase)
            if before is not None:
                known.append(before)
            else:
                jobs.append(
                    Job(context.ledger.number(), policy, phase, seed, "recover", origin.number)
                )
    return known + context.run_jobs(jobs, "recover")


def _untrained(context: Context, done: Sequence[Trial]) -> dict[int, float]:
    """Trial number to the quality that the search found for the policy without training."""
    searched = {t.number: t.measurement for t in context.ledger.trials if t.phase == SEARCH}
    parents = {t.number: searched.get(t.parent) for t in done if t.parent is not None}
    return {number: m.score for number, m in parents.items() if m is not None}


def run_verify(context: Context, choose: Callable[[], Decision]) -> Trial | None:
    """Measure front members once more and score them on the test split, which nothing else saw.

    Of the budget both measurements have a say: an answer that is over it now makes room for the
    next, until one is within it twice. Where there is no answer, the nearest is verified.

    Args:
        context: of the study.
        choose: decides among all trials so far.

    Returns:
        The answer; ``None`` where there is none.
    """
    first = choose().best
    ahead = first.number if first is not None else None
    members = sorted(context.ledger.front(), key=lambda t: (t.number != ahead, *rank(t)))
    tried = _verify(context, members[:VERIFIED])
    found = choose()
    while found.best is not None and found.best.number not in tried and not context.stop:
        tried |= _verify(context, [found.best])
        found = choose()
    if found.nearest is not None:
        _verify(context, [found.nearest])
    return found.best


def _verify(context: Context, chosen: Sequence[Trial]) -> set[int]:
    """Verify what is not verified yet; the numbers of all that were to be."""
    jobs = []
    found = context.ledger.trials
    finished = {t.policy.digest for t in found if t.phase.kind == "recover" and t.measurement}
    for trial in chosen:
        phase = Phase("verify", trial.phase.epochs, trial.phase.rung)
        if context.ledger.known(trial.policy, phase) is None:
            jobs.append(
                Job(
                    context.ledger.number(), trial.policy, phase, trial.seed, "verify", trial.number
                )
            )
    context.run_jobs(
        jobs,
        "verify",
        lambda job: job.policy.repairable and job.policy.digest not in finished,
    )
    return {t.number for t in chosen}
