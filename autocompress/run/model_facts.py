"""What reports tell of a model and its data: they are made without either."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from autocompress.model.shapes import resolver
from autocompress.report.tables import shown
from autocompress.run.profile import operator_times

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autocompress.run.assembly import Assembly
    from autocompress.track.view import RunView


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


def packed_labels(parts: Assembly) -> str | None:
    """The class of every val sample, 16 bits each, where that is at hand without reading them."""
    labels = parts.data.val.labels
    if labels is None or not len(labels) or not 0 <= labels.min() <= labels.max() < 1 << 16:
        return None
    return base64.b64encode(labels.cpu().numpy().astype("<u2").tobytes()).decode()
