"""How a study searches and recovers: plain, checked data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Sampler = Literal["guided", "tpe", "nsga2", "gp", "random"]


class SearchConfig(BaseModel):
    """The ``search`` section of a study.

    Args:
        sampler: ``guided`` (seeds, solver, level switches, Optuna's TPE for variety) or one of
            Optuna's samplers alone.
        trials: evaluations of the search phase; ``null`` leaves the end to the clock.
        timeout_s: seconds of the search phase; ``null`` leaves the end to the count.
        seed: of everything random.
        objectives: accuracy, then the cost that the front trades it for.
        seeds: begin with uniform policies and all-int8 (and the solver's, if guided).
        screen_images: training inputs that a proposal is screened on at most.
        candidates: proposals that are screened for each trial that is evaluated.
        max_rejections: proposals in a row whose estimate is over the budget before the search gives
            up; ``null`` goes on until trials or time are used up (``random`` under a tight budget).
        random_baselines: random policies within the budget that stand beside the result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampler: Sampler = "guided"
    trials: int | None = Field(60, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    seed: int = 0
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    seeds: bool = True
    screen_images: int = Field(256, ge=16)
    candidates: int = Field(6, ge=1)
    max_rejections: int | None = Field(500, ge=1)
    random_baselines: int = Field(3, ge=0)


class RecoveryPlan(BaseModel):
    """Which trials are fine-tuned, and for how long.

    Args:
        epochs: of the first rung; each further rung doubles them; 0 trains nothing: the most
            accurate candidates are only finished by the thorough reconstruction.
        rungs: at most so many.
        candidates: trials of the first rung: the most accurate within the budget, then the best
            of other cost bands.
        compare_distillation: train the first candidate with and without a teacher.
        seed: of training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(0.0, ge=0)
    rungs: int = Field(1, ge=1)
    candidates: int = Field(3, ge=1)
    compare_distillation: bool = True
    seed: int = 0
