"""The options of ``search``, laid over a study."""

from __future__ import annotations

import re
from typing import Any

from autocompress.controller.config import asked
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.run.study import StudyConfig

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h|)\s*$")


def seconds(text: str) -> float:
    """Read a duration: ``90``, ``90s``, ``20m``, ``1.5h``."""
    found = _DURATION.match(text)
    if not found or float(found[1]) <= 0:
        raise InputError(f"A duration reads like 90s, 20m or 1.5h, got {text!r}.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def overrides(
    study: StudyConfig,
    *,
    latency_ms: float | None = None,
    budget: list[str] | None = None,
    max_accuracy_drop: float | None = None,
    max_quality_drop: str | None = None,
    trials: int | None = None,
    timeout: str | None = None,
    sampler: str | None = None,
    warm_from: str | None = None,
    workers: int | None = None,
    executor: str | None = None,
    storage: str | None = None,
    ray_address: str | None = None,
    seed: int | None = None,
) -> StudyConfig:
    """Lay the command line's options over a study."""
    changes: dict[str, Any] = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_quality_drop": max_quality_drop,
        "workers": workers,
        "executor": executor,
        "ray_address": ray_address,
    }
    if storage is not None:
        changes["tracking"] = {"storage": storage}
    limits = tuple(budget) if budget else study.budget
    if latency_ms is not None:
        limits = Budget.with_limit(limits, f"latency<={latency_ms}ms")
    changes["budget"] = limits
    search: dict[str, Any] = {"trials": trials, "sampler": sampler, "seed": seed}
    search["warm_from"] = warm_from
    if timeout is not None:
        changes["timeout_s"] = seconds(timeout)
    changes["search"] = asked(
        {key: value for key, value in search.items() if value is not None},
        timed=timeout is not None,
    )
    return study.changed(**changes)
