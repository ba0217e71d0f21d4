"""Which layers' results a layer reads, with no other layer between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

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
    reached = _reached(finder, {layer.name: i for i, layer in enumerate(layers)})
    return tuple(_of(finder, layer.name, reached) for layer in layers)


def _reached(finder: Finder, places: Mapping[str, int]) -> list[int]:
    """What the result of each operator comes from, without any layer between.

    A set as the bits of a number, since in a deep network every sum comes from all before it: the
    last bit for what is no layer's, the others for layers by their place.
    """
    found: list[int] = []
    for operator, layer in zip(finder.run.operators, finder.layer_of, strict=True):
        if not operator.floating:
            found.append(0)
        elif layer is not None:
            found.append(2 << places[layer])
        else:
            kind = operator.name.rstrip("_")
            kept = kind in _ON_INTEGERS or kind.startswith(SPATIAL)
            found.append(reduce(or_, (found[n] for n in operator.reads), int(not kept)))
    return found


def _of(finder: Finder, name: str, reached: Sequence[int]) -> tuple[int, ...]:
    operators, layer_of = finder.run.operators, finder.layer_of
    own = (n for n in finder.holders.get(name, ()) if layer_of[n] == name)
    reads = (read for n in own for read in operators[n].reads if layer_of[read] != name)
    bits = bin(reduce(or_, (reached[n] for n in reads), 0) or 1)[:1:-1]
    return tuple(OUTSIDE if i == 0 else i - 1 for i, bit in enumerate(bits) if bit == "1")
