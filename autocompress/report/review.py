"""What the page of a run is told about its trials: plain data, which the page's script reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from shlex import join, quote
from typing import Any

from autocompress.policy.budget import Budget
from autocompress.policy.costs import COSTS
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.policy.technique import Technique
from autocompress.report.comparison import CLEAR
from autocompress.report.tables import elsewhere, origin_text, what
from autocompress.results.difference import HITS, hits_of
from autocompress.results.metric import LATENCY, MACS, METRICS, SIZE, Measurement, Metric
from autocompress.results.screened import Screened
from autocompress.results.trial import Trial, TrialState
from autocompress.track.view import RunView, score, value

_MOST_TRIALS = 3000
"""Measured trials on the page; a browser draws as many in a moment."""
_MOST_REJECTED = 1000
_MOST_CELLS = 150_000
"""Layers of trials, together: half a megabyte of text."""
_MOST_HITS = 300_000
"""Signs that tell which samples were answered rightly, of all trials together."""
_COSTS = {cost.name: METRICS[cost.name] for cost in COSTS}
_TITLES = {
    **{cost.name: (cost.title, cost.title.partition(",")[0]) for cost in COSTS},
    MACS.name: ("multiply-adds", "MACs"),
    SIZE.name: ("file size, bytes", "size"),
}
"""Of axes, and of columns."""


def review(
    view: RunView,
    screened: Mapping[str, Screened],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Trials, layers and samples of a run, JSON-able.

    Of very many trials a part is taken: all of the front at any budget, the reference policies, and
    as many others as a page can show, evenly over the time of the study.

    Args:
        view: of the run.
        screened: what it looked at quickly, by the digest of the policy.
        summary: what ``front.json`` tells of layers (``facts``, ``alone``) and val samples
            (``labels``).
    """
    special = _special(view)
    chosen = _thinned(view.compared, _MOST_TRIALS, special)
    found = [t for t in view.trials if t.state is TrialState.REJECTED and t.measurement]
    rejected = _thinned(found, _MOST_REJECTED, set())
    first = sorted(chosen, key=lambda t: t.number not in special)
    metrics = _costs(view)
    quality = view.quality
    return {
        "run": quote(view.run or "runs/NAME"),
        "there": join(elsewhere(view)),
        "quality": {**quality.as_dict(), "fraction": quality.fraction, "title": quality.title},
        "range": [short(x) for x in quality_range(view)],
        "costs": [_cost(view, m) for m in metrics],
        "objectives": [{"name": m.name, "goal": m.goal} for m in view.objectives[1:]],
        "limits": [
            {"metric": limit.metric, "bound": limit.bound(view.baseline.values)}
            for limit in view.budget.limits
        ],
        "clear": CLEAR,
        "most_lost": view.most_lost,
        "baseline": _baseline(view, metrics),
        "best": view.best.number if view.best else None,
        "nearest": view.nearest.number if view.nearest else None,
        "references": {name: t.number for name, t in view.reference_trials.items()},
        "measured": len(view.compared),
        "rejected": len(found),
        "trials": _columns(view, [*chosen, *rejected], metrics),
        "checks": _checks(view, metrics),
        **_layers(view, first),
        "facts": _facts(view, screened, summary.get("facts") or {}),
        "labels": summary.get("labels"),
        "alone": summary.get("alone"),
        "hits": _hits(view, first),
    }


def short(number: float | None) -> float | None:
    """Six digits are enough for a picture; what is no number is left out."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    return float(f"{number:.6g}") if math.isfinite(number) else None


def quality_range(view: RunView) -> tuple[float, float]:
    """From the worst that matters to the best: policies at chance would flatten the picture."""
    quality = view.quality
    known = [*view.front, *view.reference_trials.values()]
    known += [view.nearest] if view.nearest is not None else []
    losses = sorted(quality.loss(t.measurement.score) for t in view.compared if t.measurement)
    base = view.baseline.score
    matter = [quality.loss(t.measurement.score) for t in known if t.measurement]
    matter += [quality.loss(base), quality.loss(quality.useless(base, 0.2))]
    # all but the worst quarter
    matter += [losses[len(losses) - 1 - len(losses) // 4]] if losses else []
    ends = [quality.shown(-x if quality.goal == "maximize" else x) for x in matter]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def _special(view: RunView) -> set[int]:
    """Trials that stay on the page whatever else does not."""
    anywhere = view.under(Budget()).front  # of any budget on the cost
    more = [*view.front, *anywhere, *view.reference_trials.values(), view.best, view.nearest]
    return {t.number for t in more if t is not None} | {
        t.number for t in view.compared if t.phase.kind == "recover"
    }


def _thinned(trials: Sequence[Trial], most: int, keep: set[int]) -> list[Trial]:
    others = [t for t in trials if t.number not in keep]
    room = max(1, most - (len(trials) - len(others)))
    step = -(-len(others) // room)
    taken = {t.number for t in islice(others, 0, None, step)} if step > 1 else None
    return [t for t in trials if taken is None or t.number in keep or t.number in taken]


def _costs(view: RunView) -> list[Metric]:
    """Costs that trials have, the objective first."""
    order = [*view.objectives[1:], *(_COSTS[n] for n in view.budget.metrics if n in _COSTS)]
    order += _COSTS.values()
    known = dict.fromkeys(m for m in order if m.name in view.baseline)
    return [m for m in known if not view.compared or any(_has(t, m) for t in view.compared)]


def _cost(view: RunView, metric: Metric) -> dict[str, Any]:
    asked = {*(m.name for m in view.objectives), *view.budget.metrics}
    title, column = _TITLES.get(metric.name, (metric.title, metric.name))
    return {
        "name": metric.name,
        "title": title,
        "short": column,
        "goal": metric.goal,
        "listed": metric.name in asked or metric in (LATENCY, MACS, SIZE),
    }


def _has(trial: Trial, metric: Metric) -> bool:
    return value(trial, metric.name) is not None


def _baseline(view: RunView, metrics: Sequence[Metric]) -> dict[str, Any]:
    base, test = view.baseline, view.test_baseline
    return {
        "quality": base.score,
        "error": base.score_error,
        "test": test.get(view.quality.name) if test else None,
        "costs": {m.name: base.get(m.name) for m in metrics},
        "images": base.context.get("images"),
        "hits": _packed(base),
    }


def _columns(
    view: RunView, trials: Sequence[Trial], metrics: Sequence[Metric]
) -> dict[str, list[Any]]:
    """One list per property, which is half as long as one object per trial."""
    tested = {t.number: view.verified(t) for t in _verified(view)}
    words: dict[str, int] = {}
    rows = []
    for trial in trials:
        found = trial.measurement
        check = tested.get(trial.number)
        rows.append(
            {
                "number": trial.number,
                "rejected": int(trial.state is TrialState.REJECTED),
                "phase": trial.phase.kind[0],
                "epochs": trial.phase.epochs,
                "parent": trial.parent,
                "quality": short(score(trial)),
                "error": short(found.score_error) if found else None,
                "test": short(score(check)),
                "seconds": short(trial.seconds),
                "interval": _interval(view, found),
                "images": found.context.get("images") if found else None,
                "what": words.setdefault(what(trial, view), len(words)),
                "origin": words.setdefault(origin_text(trial, view), len(words)),
                "reason": words.setdefault(trial.reason, len(words)),
                "distilled": int(trial.policy.distill is not None),
                **{m.name: short(value(trial, m.name)) for m in metrics},
            }
        )
    names = rows[0] if rows else ()
    return {"words": list(words), **{n: [row[n] for row in rows] for n in names}}


def _verified(view: RunView) -> Iterable[Trial]:
    """Trials that a verification may speak of: not all have to be looked up."""
    checks = [t for t in view.trials if t.phase.kind == "verify"]
    policies = {t.policy.untrained for t in checks}
    parents = {t.parent for t in checks}
    if not checks:
        return ()
    return (t for t in view.compared if t.number in parents or t.policy.untrained in policies)


def _interval(view: RunView, found: Measurement | None) -> list[float | None] | None:
    """Of the latency, in ms, as the paired timing tells it."""
    base = view.baseline.get(LATENCY.name)
    if found is None or base is None:
        return None
    if "table" in (found.context.get("target") or {}):  # another device's latency
        return None
    low, high = found.timing.ratio_low, found.timing.ratio_high
    return None if low is None or high is None else [short(low * base), short(high * base)]


def _checks(view: RunView, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """What verification measured again, and the trials that it judges with it.

    What its verification finds over a budget is over it: see ``confirmed``.
    """
    same: dict[Policy, list[int]] = {}
    checks = [t for t in view.trials if t.phase.kind == "verify"]
    checks = [t for t in checks if t.state is TrialState.COMPLETE and t.measurement]
    policies = {t.policy.untrained for t in checks}
    for trial in view.compared if checks else ():
        if trial.policy.untrained in policies:
            same.setdefault(trial.policy.untrained, []).append(trial.number)
    return [
        {
            "trials": same.get(t.policy.untrained, []),
            # all that a budget may limit
            "costs": dict(t.measurement.values) if t.measurement else {},
        }
        for t in checks
    ]


def _layers(view: RunView, trials: Sequence[Trial]) -> dict[str, Any]:
    """What was done to every layer: per trial the numbers of cells that are told once each."""
    names = view.layer_names
    most = _MOST_CELLS // max(1, len(names))
    trials = [t for t in trials if t.policy.student is None][:most]
    every = {p for t in trials for p in t.policy.layers.values()}
    used = [t for t in techniques() if any(map(t.active, every))]
    known: dict[tuple[LayerPolicy, tuple[int, int] | None], int] = {}
    policies = {}
    for trial in trials:
        kept = view.kept.get(trial.number, {})
        keys = ((trial.policy[name], kept.get(name)) for name in names)
        policies[trial.number] = [known.setdefault(key, len(known)) for key in keys]
    return {
        "techniques": [technique.name for technique in used],
        "layers": list(names),
        "cells": [[cell(technique, *key) for technique in used] for key in known],
        "policies": policies,
    }


def _facts(
    view: RunView, screened: Mapping[str, Screened], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What is known of each layer, with its sensitivity where it was looked at alone."""
    levels: dict[str, set[LayerPolicy]] = {}
    for trial in view.trials if screened else ():
        for name, policy in trial.policy.layers.items():
            levels.setdefault(name, set()).add(policy)
    found = {name: dict(facts) for name, facts in known.items()}
    for name, policies in levels.items():
        alone = ((screened.get(Policy({name: policy}).digest), policy) for policy in policies)
        looks = [(look.kl, _told(policy)) for look, policy in alone if look is not None]
        if looks:
            kl, text = max(looks)
            found.setdefault(name, {}).update(sensitivity=short(kl), alone=text)
    return found


def _told(policy: LayerPolicy) -> str:
    return ", ".join(text for text in (t.cell(policy) for t in techniques()) if text)


def cell(
    technique: Technique, policy: LayerPolicy, kept: tuple[int, int] | None
) -> tuple[str, float | None]:
    """What a technique did to a layer, and the share that is left.

    Args:
        technique: of the column.
        policy: of the layer.
        kept: channels that the layer keeps, and those that it had, where that is known: units,
            heads and ``channel_multiple`` round what a policy asks for.
    """
    text = technique.cell(policy)
    if technique.stage != "channels" or kept is None:
        return text, short(_share(technique, policy))
    left, whole = kept
    if text or left < whole:
        more = [f for f in technique.fields[1:] if policy.value(f.name) != f.default]
        each = (f"{f.name} {policy.value(f.name)}" for f in more)
        text = ", ".join([f"{left} of {whole} channels", *each])
    return text, short(left / whole)


def _share(technique: Technique, policy: LayerPolicy) -> float | None:
    """For the colour: what the technique draws, else its first field beside the default."""
    bar = technique.bar(policy)
    if bar is not None or not technique.active(policy):
        return 1.0 if bar is None else bar
    first = technique.fields[0]
    mine = policy.value(first.name)
    if isinstance(mine, bool) or not isinstance(mine, int | float):
        return 0.5
    whole = first.default
    if isinstance(whole, int | float) and not isinstance(whole, bool):
        mine = mine / whole if whole else 1 - mine
    return min(1.0, max(0.0, mine))


def _hits(view: RunView, trials: Sequence[Trial]) -> dict[int, str]:
    """Which samples were answered rightly, so that the page can compare any two trials."""
    found, left = {}, _MOST_HITS
    for trial in trials:
        packed = _packed(trial.measurement)
        if packed is not None and len(packed) <= left:
            found[trial.number] = packed
            left -= len(packed)
    return found


def _packed(measurement: Measurement | None) -> str | None:
    if measurement is None or hits_of(measurement) is None:
        return None
    return str(measurement.context[HITS])
