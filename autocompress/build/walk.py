"""A traced model run node by node, so that two networks can be compared on the way."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from autocompress.errors import UnsupportedModel


class _Tracer(fx.Tracer):
    """Keeps every layer that a policy may replace as one node."""

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.leaves or super().is_leaf_module(module, name)


def trace(model: nn.Module, leaves: Iterable[str]) -> fx.Graph:
    """The graph of a model; the named layers stay whole.

    Raises:
        UnsupportedModel: its control flow cannot be traced by torch.fx.
    """
    try:
        return _Tracer(frozenset(leaves)).trace(model)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UnsupportedModel(f"torch.fx cannot trace the model: {error}") from error


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Which values can be dropped after a node has run."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    dead: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        last = max(node.users, key=position.__getitem__, default=node)
        dead.setdefault(last, []).append(node)
    return dead


def node_value(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module) -> Any:
    """What a node gives, from the values of those before it and the parts of a module."""
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        found = module.get_submodule(str(node.target))(*args, **kwargs)
    elif node.op == "call_function":
        assert callable(node.target)
        found = node.target(*args, **kwargs)
    elif node.op == "call_method":
        found = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        found = module
        for part in str(node.target).split("."):
            found = getattr(found, part)
    # in-place operators would change what an earlier node holds
    return found.clone() if _in_place(node, module) and isinstance(found, Tensor) else found


def _in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return bool(node.kwargs.get("inplace", False)) or node.target is operator.iadd
    return node.op == "call_method" and str(node.target).endswith("_")
