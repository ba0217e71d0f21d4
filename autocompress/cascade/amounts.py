"""How people write what a cascade is to keep to. Light: studies are read without numpy."""

from __future__ import annotations

import math
import re

from autocompress.errors import InputError


def asked_amounts(
    min_accuracy: str | float | None, mean_latency: str | float | None
) -> dict[str, float]:
    """``most_lost`` (a fraction of 1) or ``mean_ms``, whichever is given.

    Args:
        min_accuracy: points below the uncompressed model: ``0.2%`` or ``0.2``.
        mean_latency: ``0.3ms`` or ``0.3``.

    Raises:
        InputError: neither or both, or something that is no amount above 0.
    """
    if (min_accuracy is None) == (mean_latency is None):
        raise InputError(
            "A cascade keeps to either a least accuracy (`--min-accuracy 0.2%`, in a study "
            "`min_accuracy`: so many points below the uncompressed model) or a mean latency "
            "(`--mean-latency 0.3ms`, `mean_latency`)."
        )
    if min_accuracy is not None:
        points = _amount(min_accuracy, "%", "accuracy")
        if points >= 100:
            raise InputError(f"Fewer than 100 points of accuracy may be lost, got {points:g}.")
        return {"most_lost": points / 100}
    assert mean_latency is not None
    return {"mean_ms": _amount(mean_latency, "ms", "mean latency")}


def _amount(given: str | float, unit: str, what: str) -> float:
    # with an exponent: so Python writes the small numbers of a study
    found = re.fullmatch(rf"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?:{unit})?\s*", str(given))
    if found is None or not 0 < float(found[1]) < math.inf:
        raise InputError(f"The {what} is an amount above 0 such as 0.3{unit}, got {given!r}.")
    return float(found[1])
