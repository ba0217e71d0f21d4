"""What the terminal shows of a run, and what ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.policy.costs import BY_NAME, EXTRA, WORST, CostMetric
from autocompress.policy.registry import in_order
from autocompress.report.cascades import cascade_facts, cascades, members_text, on_test
from autocompress.report.comparison import compared
from autocompress.results.failures import failed_phases
from autocompress.results.metric import ACCURACY, Measurement, Metric
from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView, latency_ratio, policy_summary

if TYPE_CHECKING:
    from rich.table import Table

BUILDS_DIFFER = (
    "Of trials from the search, val is scored after the quick reconstruction and test after the "
    "thorough one, so that test can be the higher by far."
)
"""Stands under tables in which that is so."""

_COSTS = (
    ("latency_ms", "latency"),
    ("macs", "MACs"),
    ("size_bytes", "size"),
)
ELSEWHERE = "elsewhere"
"""In the uncompressed model's context: options of the command line that name the target whose costs
a view tells, where that is not the run's own."""


def elsewhere(view: RunView) -> list[str]:
    """Those options; none on the run's own target."""
    return list(view.baseline.context.get(ELSEWHERE) or ())


def where(view: RunView) -> str:
    """For titles: the target of the costs, where it is not the run's own."""
    return "".join(f" on {target}" for target in elsewhere(view)[1:2])


def summary_json(view: RunView, *, every: bool = True) -> dict[str, Any]:
    """The one object that ``search --json`` and ``front --json`` print.

    ``trials`` holds every trial but cascades, by number; those of phase ``verify`` were scored on
    the test split. ``front`` names its members, cheapest first; where nothing met the budget, the
    nearest trial, which is not feasible. ``feasible`` says whether anything met it, ``answered``
    whether there is an answer, which keeps to the largest drop as well; ``reason`` why not;
    ``target``, where it is not the run's own, names that of the costs; ``failed_phases`` which
    phases had trials that failed without exception. ``cascades``, where there are any, holds trials
    in which several members answer together.

    Args:
        view: of the run.
        every: or else only the front's trials, and then their verifications.
    """
    front = shown(view)
    checks = [check for check in map(view.verified, front) if check is not None]
    alone = [t for t in view.trials if t.phase.kind != "cascade"]
    trials = sorted(alone, key=lambda t: t.number) if every else [*front, *checks]
    together = [_cascade_json(trial, view.baseline) for trial in cascades(view)]
    names = [view.quality.name, "latency_ms", "macs", "params", "size_bytes"]
    names += [cost.name for cost in EXTRA if cost.name in view.baseline]
    return {
        "run": view.run,
        "baseline": {name: view.baseline.get(name) for name in names},
        "budget": [str(limit) for limit in view.budget.limits],
        "max_accuracy_drop": view.max_accuracy_drop,
        "feasible": len(view.front) > 0,
        "answered": view.best is not None,
        "reason": view.decision.reason,
        "failed_phases": [phase.as_dict() for phase in failed_phases(view.trials)],
        "best": None if view.best is None else view.best.number,
        "nearest": None if view.nearest is None else view.nearest.number,
        "front": [trial.number for trial in front],
        "trials": [trial_json(trial, view.baseline) for trial in trials],
        "baselines": {n: trial_json(t, view.baseline) for n, t in view.reference_trials.items()},
        "hypervolume": view.hypervolume,
        "seconds": view.seconds,
        **_of_task(view),
        **({"target": there[1]} if (there := elsewhere(view)) else {}),
        **({"cascades": together} if together else {}),
    }


def _of_task(view: RunView) -> dict[str, Any]:
    """What a classification needs no key for: which quality it is, and how much of it may go."""
    found: dict[str, Any] = {}
    if view.quality != ACCURACY:
        found["quality"] = view.quality.as_dict()
    if view.max_quality_drop is not None:
        found["max_quality_drop"] = view.max_quality_drop
    return found


def write_summary(
    folder: RunFolder,
    view: RunView,
    best_model: Path | None = None,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``front.json``, from which ``RunView.load`` takes what the journal does not say.

    Args:
        folder: of the run.
        view: of the run.
        best_model: exported file of the answer, inside the folder.
        told: for the report: ``facts`` of the layers, ``labels`` of the val samples, and
            ``alone``, what each layer's change costs; those that the file has stay where none are
            given.

    Returns:
        What ``--json`` prints.
    """
    summary = summary_json(view)
    written = summary_json(view, every=False)  # the journal has the others
    model = best_model.resolve().relative_to(folder.root.resolve()) if best_model else None
    more = {
        "model": str(model) if model else None,
        "front": [trial.number for trial in view.front],
        "chosen": summary["best"],
        "objectives": [m.name for m in view.objectives],
        "reference": view.reference,
        "layers": list(view.layers),
        "cannot_prune": view.cannot_prune,
        "kept": [{"number": n, "layers": layers} for n, layers in view.kept.items()],
    }
    if told is None:
        before = folder.read_front()
        told = {name: before[name] for name in ("facts", "labels", "alone") if name in before}
    folder.write_front({**written, **more, **told})
    return summary


def shown(view: RunView) -> list[Trial]:
    """The front; where it is empty, the trial that comes nearest to the budget."""
    return list(view.front) or ([view.nearest] if view.nearest is not None else [])


def _cascade_json(trial: Trial, baseline: Measurement) -> dict[str, Any]:
    """A cascade as ``--json`` prints it: a trial without a policy of its own, with its stages."""
    found = trial_json(trial, baseline)
    del found["policy"]
    return {**found, **cascade_facts(trial)}


def trial_json(trial: Trial, baseline: Measurement, *, alone: bool = False) -> dict[str, Any]:
    """One trial as ``--json`` prints it; ``accuracy`` is a fraction of 1.

    The quality stands under its own name: ``accuracy`` of a classification.

    Args:
        trial: of a run, or
        alone: evaluated by itself: it has no place in a run, and is told in full.
        baseline: the uncompressed model.
    """
    found = trial.measurement
    name = baseline.quality.name
    place: dict[str, Any] = {
        "number": trial.number,
        "phase": trial.phase.kind,
        "origin": trial.origin,
        "parent": trial.parent,
        "state": str(trial.state),
        "reason": trial.reason,
    }
    context = found.context if found else {}
    full = {
        "params": found.get("params") if found else None,
        "violations": {m: v if math.isfinite(v) else None for m, v in trial.violations.items()},
        "problems": context.get("problems", []),
        "notes": context.get("notes", []),
    }
    return {
        **(full if alone else place),
        name: found.get(name) if found else None,
        f"{name}_stderr": found.spread.get(name) if found else None,
        "latency_ms": found.get("latency_ms") if found else None,
        "latency_ratio": latency_ratio(found, baseline),
        "macs": found.get("macs") if found else None,
        "size_bytes": found.get("size_bytes") if found else None,
        **{c.name: found[c.name] for c in EXTRA if found is not None and c.name in found},
        "feasible": trial.feasible,
        "policy": trial.policy.as_dict(),
    }


def front_table(view: RunView) -> Table:
    """The front, cheapest first, the answer marked; the uncompressed model closes it."""
    from rich.table import Table

    title = "Pareto front" + (f" of {view.run}" if view.run else "") + where(view)
    caption = f"budget: {view.budget}; hypervolume {view.hypervolume:.4g}"
    if view.builds_differ:
        caption += f"\n{BUILDS_DIFFER}"
    table = Table(title=_as_it_is(title), caption=caption)
    tested = any(view.verified(t) is not None for t in view.front)
    _columns(table, ["trial", *quality_columns(view.quality, tested)])
    _columns(table, _cost_columns(view))
    table.add_column("what was done")
    table.add_column("origin", style="dim")
    if view.nearest is not None:
        reason = _as_it_is(view.decision.reason)
        table.caption = f"{reason} The nearest is trial {view.nearest.number}."
    for trial in shown(view):
        mark = view.best is not None and trial.number == view.best.number
        test = [quality_text(_measured(view.verified(trial)))] if tested else []
        table.add_row(
            f"{trial.number}{' *' if mark else ''}",
            quality_text(trial.measurement),
            *test,
            *_cost(trial.measurement, view),
            what(trial, view),
            _as_it_is(origin_text(trial, view)),
            style="bold green" if mark else None,
        )
    for trial in cascades(view):
        test = [quality_text(on_test(trial))] if tested else []
        cells = (quality_text(trial.measurement), *test, *_cost(trial.measurement, view))
        table.add_row(str(trial.number), *cells, what(trial, view), "cascade", style="cyan")
    table.add_section()
    test = [quality_text(view.test_baseline)] if tested else []
    table.add_row(
        "", quality_text(view.baseline), *test, *_cost(view.baseline, view), "uncompressed", ""
    )
    return table


def verdict_table(view: RunView) -> Table:
    """The answer beside the uncompressed model and the reference policies."""
    from rich.table import Table

    table = Table(
        title="The answer beside the reference policies", caption=f"budget: {view.budget}"
    )
    table.add_column("")
    answer = view.best or view.nearest
    tested = answer is not None and view.verified(answer) is not None
    _columns(table, quality_columns(view.quality, tested))
    _columns(table, _cost_columns(view))
    table.add_column("in budget")

    def add(name: str, trial: Trial | None, found: Measurement | None, style: str = "") -> None:
        check = view.verified(trial) if trial is not None else None
        on_test = _measured(check) if trial is not None else view.test_baseline
        feasible = trial.feasible if trial is not None else view.baseline_within
        table.add_row(
            _as_it_is(name),
            quality_text(found),
            *([quality_text(on_test)] if tested else []),
            *_cost(found, view),
            "yes" if feasible else "no",
            style=style or None,
        )

    add("uncompressed", None, view.baseline)
    for name, trial in view.reference_trials.items():
        add(f"{name} (trial {trial.number})", trial, trial.measurement)
    told = {t.number for t in view.reference_trials.values()} | {answer.number if answer else None}
    pairs = {c.found.number: c.found for c in compared(view) if c.found is not None}
    for number, trial in pairs.items():  # what the verdict speaks of
        if view.best is not None and number not in told:
            add(f"search's best, same training (trial {number})", trial, trial.measurement)
    if answer is not None:
        label = "chosen" if view.best is not None else "nearest"
        add(f"{label} (trial {answer.number})", answer, answer.measurement, "bold")
    return table


def what(trial: Trial, view: RunView) -> str:
    """What a policy does, in a few words; of a cascade, its members."""
    if trial.phase.kind == "cascade" and trial.measurement is not None:
        return members_text(trial)
    found = policy_summary(trial.policy, view.layer_names)
    parts = [text for technique in in_order() for text in technique.told(found)]
    parts += ["student"] if trial.policy.student is not None else []
    if trial.phase.epochs:
        guided = ", distilled" if trial.policy.distill else ""
        parts.append(f"trained {epochs_text(trial.phase.epochs)}{guided}")
    return ", ".join(parts) or "unchanged"


def epochs_text(epochs: float) -> str:
    """How long was trained."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def origin_text(trial: Trial, view: RunView) -> str:
    """Who proposed the policy."""
    proposer = view.proposer(trial)
    return proposer if trial.phase.kind == "search" else f"{proposer}, {trial.phase.kind}"


def quality_columns(quality: Metric, tested: bool) -> list[str]:
    """Titles of the columns that hold the quality; a fraction is in percent without saying so."""
    unit = "" if quality.fraction or not quality.unit else f", {quality.unit}"
    splits = ("val", "test") if tested else ("val",)
    return [f"{quality.name} ({split}{unit})" for split in splits]


def quality_text(found: Measurement | None) -> str:
    """The quality (in percent where it is a fraction) with its standard error."""
    if found is None:
        return "-"
    name = found.quality.name
    return found.quality.plain(found.get(name), found.spread.get(name))


def number_text(name: str, number: float | None) -> str:
    """A cost with a unit that suits its size."""
    if number is None:
        return "-"
    if BY_NAME[name].inverse:
        return f"{1e3 / number:.3g}{BY_NAME[name].inverse}"
    if name == "energy_mj":
        return f"{number:.3g} mJ"
    if name == WORST:
        return f"{number:.2f}x"
    if name.endswith("_ms"):
        return f"{number:.3g} ms" if number < 100 else f"{number:.0f} ms"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}{'B' if name.endswith('bytes') else ''}"
    return f"{number:.3g}{' B' if name.endswith('bytes') else ''}"


def _as_it_is(text: str) -> str:
    """A text of anyone's for a cell or a title: brackets in it are no markup."""
    from rich.markup import escape

    return escape(text)


def _columns(table: Table, names: Iterable[str]) -> None:
    for name in names:
        table.add_column(_as_it_is(name), justify="right", no_wrap=True)


def _measured(trial: Trial | None) -> Measurement | None:
    return trial.measurement if trial is not None else None


def _cost(found: Measurement | None, view: RunView) -> list[str]:
    values = [found.get(name) if found else None for name, _ in _COSTS]
    texts = [number_text(name, v) for (name, _), v in zip(_COSTS, values, strict=True)]
    ratio = 1.0 if found is view.baseline else latency_ratio(found, view.baseline)
    more = [number_text(c.name, found.get(c.name) if found else None) for c in _compared(view)]
    return [texts[0], "-" if ratio is None else f"{ratio:.2f}x", *texts[1:], *more]


def _compared(view: RunView) -> list[CostMetric]:
    """Further costs that the study limits or compares, for columns of their own."""
    named = {*view.budget.metrics, *(m.name for m in view.objectives)}
    return [cost for cost in EXTRA if cost.name in named]


def _cost_columns(view: RunView) -> list[str]:
    return ["latency", "of base", "MACs", "size", *(c.word for c in _compared(view))]
