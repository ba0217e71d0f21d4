"""What a layer bank knows of the data: sums over inputs, of one data set or of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from autocompress.build.rows import RowCounts, watched
from autocompress.model.attention import opened, projection_of
from autocompress.model.groups import SlicingPlan
from autocompress.model.splitting import why_no_product
from autocompress.model.tracing_stubs import why_whole
from autocompress.model.usage import inherited
from autocompress.policy.inventory import RE_SOLVE, Inventory
from autocompress.task.data import Split, feed
from autocompress.techniques.moments import Moments, input_moments, solvable
from autocompress.techniques.narrow import sees


@dataclass(frozen=True)
class Statistics:
    """Statistics of layers' inputs.

    Args:
        moments: layer name to input moments.
        rows: name of a table to how often its rows are read.
    """

    moments: Mapping[str, Moments]
    rows: Mapping[str, RowCounts] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inventory: Inventory,
        plan: SlicingPlan,
        sample: Split,
        train: Split,
        seed: int,
    ) -> Statistics:
        """Taken from data at hand.

        Args:
            model: in eval mode.
            inventory, plan: of the model.
            sample: calibration inputs.
            train: where they come from; rows that are read are counted on all of it if possible.
            seed: of the choice of positions in large feature maps.
        """
        names, running = watched_layers(model, inventory, plan), opened(model)
        with watched(running, watched_tables(model, inventory)) as reads:
            moments = input_moments(running, names, feed(sample), seed=seed)
        return cls(moments, reads.result(len(sample), train))


def watched_layers(model: nn.Module, inventory: Inventory, plan: SlicingPlan) -> list[str]:
    """Names of the layers whose inputs matter, in an opened model.

    They are those that can be solved anew, projections of attentions among them, and those that
    make heads that can get narrower.
    """
    found: dict[str, None] = {}
    for layer in inventory.layers:
        name = layer.name
        if layer.kind == "attention" and not why_whole(model.get_submodule(name)):
            name = projection_of(model, name)
        elif layer.kind not in ("conv", "linear"):
            continue
        if not layer.why_not(RE_SOLVE) and solvable(model.get_submodule(name)):
            found[name] = None
    for narrowing in plan.narrowings.values():
        head = narrowing.heads[0]
        made = (("query", head.query), ("key", head.key), ("value", head.value))
        found |= dict.fromkeys(sees(rows, kind) for kind, rows in made)
    return list(found)


def watched_tables(model: nn.Module, inventory: Inventory) -> dict[str, list[str]]:
    """Tables whose rows are read at the places that they are given, and all that pick them."""
    found: dict[str, list[str]] = {}
    for layer in inventory.layers:
        module = model.get_submodule(layer.name)
        if layer.kind == "embedding" and (inherited(module) or not why_no_product(module)):
            found.setdefault(layer.tied_to or layer.name, []).append(layer.name)
    return {name: layers for name, layers in found.items() if name in layers}
