"""What other drivers of a study wrote, looked at before anything relies on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.errors import InputError
from autocompress.policy.space import Space
from autocompress.results.metric import Metric, metric
from autocompress.results.trial import SEARCH, Trial, TrialState


def read_foreign(
    text: str, params: Mapping[str, Any], space: Space, objectives: Sequence[Metric]
) -> Trial:
    """A complete trial of the same search by another driver.

    Args:
        text: the trial as JSON.
        params: choice name to its level, as Optuna holds them.
        space: that the policy must lie in.
        objectives: that must have been measured, each by the same metric.

    Raises:
        InputError: it is none.
        Exception: whatever Python makes of text that is no JSON and of values of other kinds.
    """
    trial = Trial.from_dict(json.loads(text))
    if (trial.phase, trial.state) != (SEARCH, TrialState.COMPLETE) or trial.measurement is None:
        raise InputError("it is no complete trial of a search")
    for one in objectives:
        if trial.measurement.get(one.name) is None:
            raise InputError(f"`{one.name}` was not measured")
        if metric(one.name, trial.measurement.metrics) != one:
            raise InputError(f"`{one.name}` is another metric there")
    levels = [[str(v) for v in choice.levels] for choice in space.choices]
    names = [choice.name for choice in space.choices]
    if {*params} != {*names}:
        raise InputError("it has other choices than the space")
    assignment = [known.index(params[name]) for name, known in zip(names, levels, strict=True)]
    if space.decode(assignment).untrained_digest != trial.policy.untrained_digest:
        raise InputError("its policy is not the one that its choices stand for")
    return trial
