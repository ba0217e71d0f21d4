"""How a study searches: plain, checked data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field

from autocompress.policy.section import STRICT, Section, describe

_FORMER = {"starts": "seeds", "random_references": "random_baselines"}
"""Fields and the names that they had before; studies and runs of that time still say them."""


def _with_former(schema: dict[str, Any], kind: type) -> None:
    """Say in the JSON Schema that the former names are read as well."""
    describe(schema, kind)
    fields = schema["properties"]
    for name, former in _FORMER.items():
        about = {"deprecated": True, "description": f"the former name of `{name}`."}
        fields[former] = {**fields[name], **about}


def _called(name: str) -> AliasChoices:
    return AliasChoices(name, _FORMER[name])


def _text(given: object) -> object:
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def asked(section: Mapping[str, Any], *, timed: bool = False) -> dict[str, Any]:
    """What a user asks of one search, to be laid over the ``search`` section of a study.

    A count alone is not cut short by the study's clock, nor a time alone by its count.

    Args:
        section: what is asked.
        timed: whether the study as a whole is given a time as well.
    """
    ends = {"trials": None, "timeout_s": None}
    given = timed or any(section.get(name) is not None for name in ends)
    return {**(ends if given else {}), **section}


class SearchConfig(Section):
    """The ``search`` section of a study.

    Args:
        sampler: ``guided`` (starting policies, solver, level switches, Optuna's TPE for variety),
            one of Optuna's samplers alone (``tpe``, ``nsga2``, ``gp``, ``random``), or one that
            an installed package offers.
        trials: evaluations of the search phase; ``null`` leaves the end to the clock.
        timeout_s: seconds of the search phase; ``null`` leaves the end to the count.
        trial_timeout_s: seconds after which an evaluation is given up as failed, for a metric or a
            loader may hang; ``null`` takes what trials took, generously.
        seed: of everything random.
        objectives: ``quality``, the first metric of the task (accuracy of a classification), then
            the cost that the front trades it for.
        starts: begin with uniform policies and all-int8 (and the solver's, if guided).
        warm_from: folder of an earlier run on the same architecture, with any weights: its front is
            tried first, and what it screened stands in for first looks that no time is left for.
        screen_images: training inputs that a proposal is screened on at most; fewer where
            ``timeout_s`` leaves no time for them.
        candidates: proposals that are screened for each trial that is evaluated.
        max_rejections: proposals in a row whose estimate is over the budget before the search gives
            up; ``null`` goes on until trials or time are used up (``random`` under a tight budget).
        random_references: random policies within the budget among the reference policies, which
            stand beside the result.
    """

    model_config = ConfigDict({**STRICT, "json_schema_extra": _with_former})

    sampler: str = "guided"
    trials: int | None = Field(60, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    trial_timeout_s: float | None = Field(None, gt=0)
    seed: int = 0
    objectives: tuple[str, ...] = ("quality", "latency_ms")
    starts: bool = Field(True, validation_alias=_called("starts"))
    warm_from: Annotated[str, BeforeValidator(_text)] | None = None
    screen_images: int = Field(256, ge=16)
    candidates: int = Field(6, ge=1)
    max_rejections: int | None = Field(500, ge=1)
    random_references: int = Field(3, ge=0, validation_alias=_called("random_references"))
