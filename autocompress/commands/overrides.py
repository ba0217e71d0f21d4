"""The options of ``search``, laid over a study."""

from __future__ import annotations

import re
from typing import Any

from autocompress.errors import InputError
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
    limits = list(budget) if budget else None
    if latency_ms is not None:
        kept = study.budget if limits is None else limits
        limits = [x for x in kept if not x.strip().startswith("latency")]
        limits.append(f"latency<={latency_ms}ms")
    if limits is not None:
        changes["budget"] = limits
    search: dict[str, Any] = {}
    if trials is not None:
        search["trials"] = trials
        # a count that was asked for is not cut short by the study's own clock
        search.setdefault("timeout_s", None)
    if timeout is not None:
        search["timeout_s"] = seconds(timeout)
        if trials is None:
            search["trials"] = None
    if sampler is not None:
        search["sampler"] = sampler
    if seed is not None:
        search["seed"] = seed
    if search:
        changes["search"] = search
    return study.changed(**changes)
