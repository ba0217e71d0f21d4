"""Says in words how a study ended, also where the words are not welcome."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autocompress.policy.costs import said
from autocompress.report.comparison import Comparison, compared
from autocompress.report.tables import number_text
from autocompress.results.answer import drop, judged
from autocompress.results.difference import difference
from autocompress.results.failures import failed_phases, why
from autocompress.results.metric import WORST_CLIENT
from autocompress.results.trial import (
    MUCH_WAITING,
    Trial,
    TrialState,
    Waiting,
    exceeded,
    worst_excess,
)
from autocompress.track.clients import read_clients
from autocompress.track.view import RunView, score, value

Tone = Literal["good", "unsure", "bad"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a study ended.

    Args:
        headline: one sentence.
        tone: for its colour.
        sentences: what supports it.
        comparisons: with every reference policy.
    """

    headline: str
    tone: Tone
    sentences: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


def verdict(view: RunView) -> Verdict:
    """Judge a study."""
    if view.best is None:
        return _no_answer(view)
    comparisons = compared(view)
    outcomes = {c.outcome for c in comparisons}
    lost = [c.name for c in comparisons if c.outcome == "lost"]
    unclear = [c.name for c in comparisons if c.outcome == "unclear"]
    failed = _failed(view)
    doubtful = unclear or failed or "won" not in outcomes
    tone: Tone = "bad" if lost else "unsure" if doubtful else "good"
    if lost:
        headline = f"The budget is met, but the search did not beat {_and(lost)}."
    elif unclear:
        headline = f"The budget is met; the lead over {_and(unclear)} is within the noise."
    elif "won" in outcomes:
        headline = (
            "The budget is met, and the search beat every reference policy that meets it too."
        )
    elif comparisons:
        headline = "The budget is met; none of the reference policies meets it."
    else:
        headline = "The budget is met; no reference policy was measured beside the search."
    sentences = (
        *failed,
        _answer(view, view.best),
        *_drop_on_test(view, view.best),
        *_worst_client(view, view.best),
        *_pooled(view, view.best),
        *_untold(view, view.best),
        *_given_up(view, view.best),
        *(str(c) for c in comparisons),
        *_waited(view),
    )
    return Verdict(headline, tone, sentences, comparisons)


def _no_answer(view: RunView) -> Verdict:
    decision, near = view.decision, view.nearest
    if near is None:
        text = "No trial was measured to its end, so there is nothing nearest to show."
        return Verdict(decision.reason, "bad", (*_failed(view), text), ())
    off = [
        f"{said(metric)}, which was not measured"
        if math.isnan(excess)
        else f"{said(metric)} {number_text(metric, value(near, metric))}, {_over(excess)}"
        for metric, excess in exceeded(near.violations).items()
    ] or [f"it loses {_amount(view, drop(near, view.baseline))} of {view.quality.name} on val"]
    sentences = (
        *_failed(view),
        f"The nearest found is trial {near.number}: {'; '.join(off)}.",
        _answer(view, near),
        *_untold(view, near),
        *_given_up(view, None),
        *_waited(view),
        decision.remedy,
    )
    return Verdict(decision.reason, "bad", sentences, ())


def _failed(view: RunView) -> tuple[str, ...]:
    """Phases in which everything failed, and why."""
    return tuple(str(phase) for phase in failed_phases(view.trials))


def _drop_on_test(view: RunView, best: Trial) -> tuple[str, ...]:
    """Where the answer keeps to the largest drop on val, which decides, and not on test."""
    check, test, most = view.verified(best), view.test_baseline, view.most_lost
    if check is None or test is None or most is None:
        return ()
    if score(check) is None or view.quality.name not in test:
        return ()
    lost = drop(check, test)
    if lost <= most:
        return ()
    return (
        f"On the test split it loses {_amount(view, lost)}, more than the {most:g} that were asked "
        "for; the answer is chosen on val alone.",
    )


def _worst_client(view: RunView, best: Trial) -> tuple[str, ...]:
    """Where data lie with clients: what the answer is worth to the one that it serves worst."""
    check, quality, name = view.verified(best), view.quality, WORST_CLIENT + view.quality.name
    found = check.measurement if check is not None else None
    if found is None or name not in found:
        return ()
    base = view.test_baseline
    gap = ""
    if base is not None and name in base:
        gap = f" ({quality.gap(quality.shown(found[name]) - quality.shown(base[name]))})"
    return (
        f"For the client that it serves worst it has {quality.name} "
        f"{quality.text(found[name])} on the test split{gap}.",
    )


def _pooled(view: RunView, best: Trial) -> tuple[str, ...]:
    """Where data lie with clients: the gap to pooling, as far as it is known."""
    clients = read_clients(view.run) if view.run else {}
    if not clients:
        return ()
    found, quality = clients.get("pooled"), view.quality
    if not found or found["trial"] != best.number:
        return ("The gap to pooling is not known: the clients' samples are not in one place.",)
    gap = quality.shown(found["pooled"]) - quality.shown(found["federated"])
    return (
        f"The same policy, built and trained as long on all samples in one place, has "
        f"{quality.name} {quality.text(found['pooled'])} on the {found['split']} split: the gap to "
        f"pooling is {quality.gap(gap)}.",
    )


def _amount(view: RunView, lost: float) -> str:
    return view.quality.gap(lost, signed=False)


def _untold(view: RunView, best: Trial | None) -> tuple[str, ...]:
    """Why the quality on the test split is missing, where it is."""
    check = view.verified(best) if best is not None else None
    found = check.measurement if check is not None else None
    if check is None and best is not None:
        return _unverified(view, best)
    if found is None or found.quality.name in found:
        return ()
    why = next((p for p in found.context.get("problems", ()) if found.quality.name in p), "")
    return (f"On the test split {found.quality.name} could not be told. {why}".rstrip(),)


def _unverified(view: RunView, best: Trial) -> tuple[str, ...]:
    """Why a trial was not verified, where others were."""
    tried = [t for t in view.trials if t.phase.kind == "verify"]
    mine = (t for t in tried if t.parent == best.number and t.state is TrialState.FAILED)
    failed = next(mine, None)
    if failed is None or any(phase.kind == "verify" for phase in failed_phases(tried)):
        return ()
    return (f"The verification of trial {best.number} failed: {why(failed)}",)


def _over(excess: float) -> str:
    return f"{excess:.1%} over its limit" if excess < 1 else f"{1 + excess:.3g} times its limit"


def _given_up(view: RunView, best: Trial | None) -> tuple[str, ...]:
    """What would have been the answer, had it not been measured again."""
    quality, least = view.quality, score(best)
    found = []
    for trial in view.compared:
        assert trial.measurement is not None
        once, mine = judged(trial, view.budget, view.baseline), trial.measurement.score
        if once.feasible and not trial.feasible and (least is None or quality.better(mine, least)):
            excess = worst_excess(trial.violations)
            found.append(
                f"Trial {trial.number} ({quality.text(mine)}) was within the budget "
                f"at first, and {_over(excess)} when measured again."
            )
    return tuple(found)


def _waited(view: RunView) -> tuple[str, ...]:
    """Why there are fewer trials than there could be."""
    share = Waiting(view.trials).share
    if share < MUCH_WAITING:
        return ()
    return (
        f"For {share:.0%} of the evaluations' time, timing waited for a quiet machine, because "
        "something else slowed it. On a machine that does nothing else the same time is enough for "
        "more trials.",
    )


def _answer(view: RunView, trial: Trial) -> str:
    assert trial.measurement is not None
    gap = difference(trial.measurement, view.baseline)
    parts = [
        f"Trial {trial.number}: {view.quality.name} {view.quality.text(trial.measurement.score)} "
        f"on val ({gap} against the uncompressed model)"
    ]
    check, test = view.verified(trial), view.test_baseline
    tested = score(check)
    if check is not None and check.measurement is not None and tested is not None:
        text = f"{view.quality.text(tested)} on the test split"
        if test and view.quality.name in test:
            text += f" ({difference(check.measurement, test)})"
        parts.append(text)
    ratio = view.ratio(trial)
    if ratio is not None:
        parts.append(f"{ratio:.2f} times its latency in the same runtime")
    for name, label in (("macs", "multiply-adds"), ("size_bytes", "file size")):
        mine, theirs = value(trial, name), view.baseline.get(name)
        if mine is not None and theirs:
            parts.append(f"{mine / theirs:.2f} times its {label}")
    return ", ".join(parts) + "."


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
