"""What reports tell of a model and its data: they are made without either."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

from autocompress.model.shapes import resolver
from autocompress.report.tables import shown
from autocompress.run.profile import operator_times

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from autocompress.run.assembly import Assembly
    from autocompress.track.view import RunView

_MOST_CELLS = 10_000
"""Layers of trials whose changes are told one by one."""


def kept_channels(parts: Assembly, view: RunView) -> dict[int, Mapping[str, tuple[int, int]]]:
    """The width of layers in the trials that tables show."""
    found = resolver(parts.inventory, parts.study.settings)
    return {
        trial.number: found.told(trial.policy)
        for trial in shown(view)
        if trial.policy.student is None
    }


def layer_facts(parts: Assembly) -> dict[str, dict[str, Any]]:
    """Per layer its MACs, its time in the uncompressed file, and what its channels go with.

    Times are the runtime's own, in ms; there are none where latencies are those of another device.
    """
    measurer, inventory = parts.evaluator.measurer, parts.inventory
    elsewhere = "table" in (measurer.baseline.context.get("target") or {})
    times = {} if elsewhere else operator_times(parts.evaluator)
    coupled = {
        name: group.name
        for group in inventory.channel_groups
        if len(group.producers) > 1
        for name in group.producers
    }
    return {
        layer.name: {
            "macs": layer.macs,
            "ms": times.get(layer.name),
            "group": coupled.get(layer.name),
        }
        for layer in inventory.layers
    }


def each_alone(
    parts: Assembly, view: RunView, losses: Sequence[NDArray[Any]]
) -> dict[str, Any] | None:
    """What each layer's change costs by itself, in the trials that a report sets side by side.

    Estimated, with all else unchanged, so that the parts need not add up to the whole. What layers
    share is charged to the first of them.

    Args:
        parts: of the study; its evaluator has its latency model.
        view: of the run.
        losses: per choice of the space, the nats that each level adds; none are known of a search
            that looks at none.

    Returns:
        ``layers``; ``table``, distinct pairs of milliseconds (below 0 where time is saved) and
        nats; and ``trials``, number to a place in the table per layer.
    """
    space, estimate = parts.space, parts.evaluator.estimate
    mine: dict[str, list[int]] = {layer.name: [] for layer in parts.inventory.layers}
    for place, choice in enumerate(space.choices):
        if choice.of_layers:
            mine[choice.layers[0]].append(place)
    whole = estimate(space.decode(space.mildest))["latency_ms"]

    @cache
    def cost(name: str, levels: tuple[int, ...]) -> tuple[float, float | None]:
        asked = dict(zip(mine[name], levels, strict=True))
        policy = space.decode([asked.get(i, level) for i, level in enumerate(space.mildest)])
        nats = float(sum(losses[i][level] for i, level in asked.items())) if losses else None
        return estimate(policy)["latency_ms"] - whole, nats

    table: dict[tuple[float, float | None], int] = {}
    trials: dict[str, list[int]] = {}
    first = {t.number for t in (*shown(view), *view.reference_trials.values())}
    order = sorted(view.compared, key=lambda t: (t.number not in first, -t.number))
    for trial in order[: _MOST_CELLS // max(1, len(mine))]:
        levels = space.encode(trial.policy)
        if levels is None:
            continue
        found = (cost(name, tuple(levels[i] for i in places)) for name, places in mine.items())
        trials[str(trial.number)] = [table.setdefault(one, len(table)) for one in found]
    rounded = [[_short(ms), None if nats is None else _short(nats)] for ms, nats in table]
    return {"layers": list(mine), "table": rounded, "trials": trials} if trials else None


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def packed_labels(parts: Assembly) -> str | None:
    """The class of every val sample, 16 bits each, where that is at hand without reading them."""
    labels = parts.data.val.labels
    if labels is None or not len(labels) or not 0 <= labels.min() <= labels.max() < 1 << 16:
        return None
    return base64.b64encode(labels.cpu().numpy().astype("<u2").tobytes()).decode()
