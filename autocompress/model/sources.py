"""Which layers' results a layer reads, with no other layer between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autocompress.model.blocks import Finder
from autocompress.model.operator_kinds import BATCH_NORMS, MOVES, RESHAPES, SAME, SPATIAL
from autocompress.policy.inventory import OUTSIDE, LayerSpec

_ON_INTEGERS = {
    *(*SAME, *RESHAPES, *MOVES, *BATCH_NORMS, "constant_pad_nd", "mean", "add", "mul"),
    *("relu", "leaky_relu", "clamp", "hardtanh", "hardsigmoid", "hardswish", "sigmoid", "silu"),
}
"""Operators that runtimes compute on integers between integer layers; others want floats."""


def layer_sources(finder: Finder, layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """What each layer reads.

    Args:
        finder: of the model's run.
        layers: of its inventory.

    Returns:
        As ``Inventory.sources``.
    """
    places = {layer.name: i for i, layer in enumerate(layers)}
    return tuple(_of(finder, layer.name, places) for layer in layers)


def _of(finder: Finder, name: str, places: Mapping[str, int]) -> tuple[int, ...]:
    operators, layer_of = finder.run.operators, finder.layer_of
    own = (n for n in finder.holders.get(name, ()) if layer_of[n] == name)
    ahead = [read for n in own for read in operators[n].reads if layer_of[read] != name]
    found, seen = set(), set()
    while ahead:
        number = ahead.pop()
        operator, layer = operators[number], layer_of[number]
        if number in seen or not operator.floating:
            continue
        seen.add(number)
        if layer is not None:
            found.add(places[layer])
            continue
        ahead += operator.reads
        kind = operator.name.rstrip("_")
        if kind not in _ON_INTEGERS and not kind.startswith(SPATIAL):
            found.add(OUTSIDE)
    return tuple(sorted(found or {OUTSIDE}))
