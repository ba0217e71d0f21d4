"""Whether what is measured of a recipe bears out what it claims."""

from __future__ import annotations

from collections.abc import Collection

from autocompress.policy.costs import BY_NAME
from autocompress.results.metric import ACCURACY, Measurement

QUALITY_TOLERANCE = 0.05
"""Of what makes a model useless (``Metric.useless``), half a point of accuracy: the same weights,
rounded and summed by another build of the runtime."""

EXTRA_TOLERANCE = 0.25
"""Of a claimed share of memory, energy, time per sample or the 99th percentile, where the study's
budget limits it."""

LATENCY_TOLERANCE = 0.15
"""Of the claimed ratio, on top of the interval: what two runs on one quiet machine differ by."""


def compare_claims(
    found: Measurement,
    found_base: Measurement,
    claimed: Measurement,
    claimed_base: Measurement,
    *,
    same_weights: bool,
    same_data: bool,
    limited: Collection[str] = (),
) -> list[str]:
    """Reasons why a measurement does not bear a recipe's claims out; empty if it does.

    With other weights or data, only the latency is claimed. A file may be faster than claimed; one
    of better quality is another file, and as wrong as one that is worse.
    """
    reasons = _quality_gap(found, claimed, claimed_base) if same_weights and same_data else []
    ratio, low, _ = _latency(found, found_base)
    claimed_ratio = claimed["latency_ms"] / claimed_base["latency_ms"]
    # means, of a cascade, vary by far more than medians do: what the interval holds is not refuted
    if low > claimed_ratio * (1 + LATENCY_TOLERANCE):
        least = f" (at least {low:.3f})" if low < ratio else ""
        reasons.append(
            f"latency is {ratio:.3f} of the uncompressed model's{least}, claimed "
            f"{claimed_ratio:.3f} (tolerance {LATENCY_TOLERANCE:.0%})"
        )
    shares = limited_shares(found, found_base, claimed, claimed_base, limited)
    return reasons + [
        f"{BY_NAME[name].title} is {now:.3f} of the uncompressed model's, claimed {then:.3f} "
        f"(tolerance {EXTRA_TOLERANCE:.0%})"
        for name, (now, then) in shares.items()
        if now > then * (1 + EXTRA_TOLERANCE)
    ]


def unsettled_claims(
    found: Measurement,
    found_base: Measurement,
    claimed: Measurement,
    claimed_base: Measurement,
) -> list[str]:
    """What a measurement neither refutes nor bears out, in sentences; empty where it settles all.

    A latency is borne out where its whole interval lies at or below the claim and its tolerance,
    and refuted where the whole of it lies above. Between the two it tells neither.
    """
    _, low, high = _latency(found, found_base)
    claimed_ratio = claimed["latency_ms"] / claimed_base["latency_ms"]
    if not low <= claimed_ratio * (1 + LATENCY_TOLERANCE) < high:
        return []
    return [
        f"latency lies between {low:.3f} and {high:.3f} of the uncompressed model's, claimed "
        f"{claimed_ratio:.3f} (tolerance {LATENCY_TOLERANCE:.0%}): that neither bears it out nor "
        "refutes it; verify again while the machine is quiet"
    ]


def _latency(found: Measurement, base: Measurement) -> tuple[float, float, float]:
    """Share of the uncompressed model's latency and its interval, the share alone without any."""
    ratio, timing = found["latency_ms"] / base["latency_ms"], found.timing
    low, high = timing.ratio_low or ratio, timing.ratio_high or ratio
    return ratio, min(low, ratio), max(high, ratio)


def limited_shares(
    found: Measurement,
    found_base: Measurement,
    claimed: Measurement,
    claimed_base: Measurement,
    limited: Collection[str],
) -> dict[str, tuple[float, float]]:
    """Costs beside the latency that a budget limits, as shares of the uncompressed model's.

    Returns:
        Name to the share that was found and the one that is claimed; none of what is told on one
        side alone.
    """
    pairs = ((found, found_base), (claimed, claimed_base))
    told = [name for name in sorted(limited) if all(m.get(name) for pair in pairs for m in pair)]
    shares = {name: [own[name] / base[name] for own, base in pairs] for name in told}
    return {name: (now, then) for name, (now, then) in shares.items()}


def _quality_gap(found: Measurement, claimed: Measurement, base: Measurement) -> list[str]:
    """Why the quality is not what was claimed; nothing where no quality was claimed."""
    quality, name = found.quality, claimed.quality.name
    if name not in claimed:  # it could not be told on this split when the recipe was written
        return []
    if quality.name not in found:
        return [f"{quality.name} could not be told: {'; '.join(found.context.get('problems', ()))}"]
    if name != quality.name and name != ACCURACY.name:  # early recipes called all of them accuracy
        return [f"the recipe claims {name}, the task measures {quality.name}"]
    around = base.get(name, claimed.score)
    assert around is not None
    tolerance = QUALITY_TOLERANCE * abs(quality.useless(around) - around)
    if abs(found.score - claimed.score) <= tolerance:
        return []
    return [
        f"{quality.name} {found.score:.4g} differs from the claimed {claimed.score:.4g} by more "
        f"than {tolerance:.2g}"
    ]
