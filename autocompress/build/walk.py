"""A traced model run step by step, so that two networks can be compared on the way."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import UnsupportedModel
from autocompress.task.calling import call_flat, parameters, without_caches
from autocompress.task.nested import tensors


class _Tracer(fx.Tracer):
    """Keeps every layer that a policy may replace as one node."""

    def __init__(self, leaves: frozenset[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.leaves or super().is_leaf_module(module, name)


class Steps:
    """The steps of a model's forward, which a compressed copy can be taken through too.

    Args:
        model: in eval mode; not changed.
        leaves: names of the layers that stay whole.
        example: inputs that show which arguments the forward is given.

    Attributes:
        graph: the steps, one per node.
        last_uses: which values can be dropped after a node has run.

    Raises:
        UnsupportedModel: torch.fx cannot trace the model's control flow.
    """

    def __init__(self, model: nn.Module, leaves: Iterable[str], example: Any) -> None:
        # tensors that a forward computes from no input are put into the module that is traced
        self._traced = copy.deepcopy(model)
        self._order = list(inspect.signature(model.forward).parameters)
        try:
            _, self._left_out = parameters(model, example)
            self.graph = _Tracer(frozenset(leaves)).trace(self._traced, self._left_out or None)
        except Exception as error:  # forwards raise whatever they do with values that are none yet
            raise UnsupportedModel(f"torch.fx cannot trace the model: {error}") from error
        self.last_uses = self._last_uses()

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        dead: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.nodes:
            last = max(node.users, key=position.__getitem__, default=node)
            dead.setdefault(last, []).append(node)
        return dead

    def value(self, node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module) -> Any:
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
            constant = str(node.target).startswith("_tensor_constant")
            found = self._traced if constant else module
            for part in str(node.target).split("."):
                found = getattr(found, part)
        # in-place operators would change what an earlier node holds
        return found.clone() if _in_place(node, module) and isinstance(found, Tensor) else found

    def feed(self, inputs: Any) -> list[Any]:
        """The values of the placeholders, in the order of the nodes."""
        given, _ = parameters(self._traced, inputs)
        known = {**self._left_out, **given}
        return [known.get(name) for name in self._order]

    @torch.no_grad()
    def check(self, module: nn.Module, inputs: Any) -> None:
        """See that a compressed network, run step by step, answers what it answers itself.

        The steps are those of the original: where a forward says sizes or places of channels that
        are gone, the compressed module corrects them while it runs, and the steps do not.

        Args:
            module: compressed.
            inputs: a few of them.

        Raises:
            UnsupportedModel: it answers something else, or a step fails.
        """
        values: dict[fx.Node, Any] = {}
        feeds = iter(self.feed(inputs))
        found: Any = None
        try:
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    values[node] = next(feeds)
                elif node.op == "output":
                    found = fx.map_arg(node.args[0], values.__getitem__)
                else:
                    values[node] = self.value(node, values, module)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise UnsupportedModel(f"a step of the compressed model fails ({error})") from error
        wanted, found = call_flat(module, inputs), tensors(without_caches(found))
        if len(wanted) != len(found) or not all(map(_near, wanted, found)):
            raise UnsupportedModel(
                "the compressed model, run step by step, answers something else than as a whole"
            )


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def _in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_function":
        return bool(node.kwargs.get("inplace", False)) or node.target is operator.iadd
    return node.op == "call_method" and str(node.target).endswith("_")
