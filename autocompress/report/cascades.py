"""What is told of a run's cascades: their members, and which stage answered what."""

from __future__ import annotations

from typing import Any

from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.view import RunView

CLASSES = 12
"""Classes that are told one by one, those that the first stage answers least of."""


def cascades(view: RunView) -> list[Trial]:
    """Trials in which several members of the run answer together."""
    done = (t for t in view.trials if t.phase.kind == "cascade")
    return [t for t in done if t.measurement is not None]


def cascade_facts(trial: Trial) -> dict[str, Any]:
    """What was asked of a cascade, chosen and found, as its trial keeps it."""
    return dict(trial.measurement.context.get("cascade", {})) if trial.measurement else {}


def on_test(trial: Trial) -> Measurement | None:
    """What a cascade did on the test split."""
    found = trial.measurement.context.get("on_test") if trial.measurement else None
    return None if found is None else Measurement.from_dict(found)


def members_text(trial: Trial) -> str:
    """Who answers, in a few words."""
    told = cascade_facts(trial)
    stages = (" and ".join(stage["members"]) for stage in told.get("stages", ()))
    return f"{', then '.join(stages)}, by {told.get('confidence')}"


def asked_text(trial: Trial) -> str:
    """What was asked, and whether test bears it out; empty where it was not kept."""
    told = cascade_facts(trial)
    if "asked" not in told or "kept" not in told:
        return ""
    lost, ms = told["asked"]["most_lost_points"], told["asked"]["mean_ms"]
    asked = (
        f"at most {lost:g} point{'' if lost == 1 else 's'} lost"
        if lost is not None
        else f"{ms:.3g} ms on average"
    )
    return f"{asked}: {'kept' if told['kept'] else 'not kept'} on test"


def answered_shares(trial: Trial) -> dict[str, Any] | None:
    """Which share of the test inputs each stage answered, of all and of single classes.

    Returns:
        ``stages``: their members; ``rows``: name and a share per stage, all inputs first, then the
        ``CLASSES`` classes that the first stage answers least of; ``more``: classes left out.
        ``None``: it was not kept.
    """
    told = cascade_facts(trial)
    if "test" not in told:
        return None
    test = told["test"]
    by_class = sorted(test["answered_by_class"].items(), key=lambda item: float(item[1][0]))
    rows = [("all inputs", test["answered"])]
    rows += [(f"class {name}", shares) for name, shares in by_class[:CLASSES]]
    return {
        "stages": [" and ".join(stage["members"]) for stage in told["stages"]],
        "rows": [(name, [f"{share:.1%}" for share in shares]) for name, shares in rows],
        "more": len(by_class) - len(by_class[:CLASSES]),
    }
