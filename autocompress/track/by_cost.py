"""A run's front by another cost than the one that it was searched for."""

from __future__ import annotations

from dataclasses import replace

from autocompress.errors import InputError, nearest
from autocompress.policy.budget import Limit
from autocompress.policy.costs import BY_NAME, BY_WORD, COSTS
from autocompress.results.metric import METRICS
from autocompress.track.view import RunView


def by_cost(view: RunView, word: str) -> RunView:
    """The same trials with a front by another cost.

    Args:
        view: of the run.
        word: of a cost, as budgets have it, or its name.

    Raises:
        InputError: there is no such cost, or the run measured it of no trial that it compared.
    """
    cost = BY_WORD.get(word) or BY_NAME.get(word)
    if cost is None:
        raise InputError(f"There is no cost {word!r}; {nearest(word, BY_WORD)}")
    if cost.name not in view.baseline:
        known = ", ".join(c.word for c in COSTS if c.word and c.name in view.baseline)
        raise InputError(f"The run did not measure {word}; it has {known}.")
    compared = [t.measurement for t in view.compared if t.measurement is not None]
    if compared and not any(cost.name in found for found in compared):
        limit = Limit(cost.name, 1.0, relative=True)
        raise InputError(
            f"The run measured {word} of no trial that it compared, only of what it verified. A "
            f"limit on it, as in --budget '{limit}', has every trial measured."
        )
    return replace(view, objectives=(view.objectives[0], METRICS[cost.name]))
