"""One run of a model as a list of steps, so that two networks can be compared on the way.

The model is run once and what it does is written down: each of its layers is one step, and so is
each of the operators between them, as PyTorch dispatches them. Any forward will do; the steps hold
for inputs of the same shapes that take the same way through it.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from autocompress.errors import UnsupportedModel
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.task.calling import call, call_flat
from autocompress.task.dispatch import OperatorMode
from autocompress.task.nested import batch_size, take, tensors

_log = logging.getLogger(__name__)

Key = tuple[str, int, int, tuple[Any, ...]]
"""What a value is called: the module in whose forward it came up, the number of that call, the
number of the operator (-1 for what the module itself gave), and its place among the results."""

_SHAPED_BY_VALUES = ("nonzero", "masked_select", "unique", "_unique")


class Steps:
    """What one run of a model did.

    Args:
        model: in eval mode; not changed.
        leaves: names of the layers that are one step each. Those of torch are so in any case.
        inputs: of the run.

    Attributes:
        graph: the steps; a layer is a ``call_module``, an operator a ``call_function``, a
            parameter a ``get_attr``, a tensor of the inputs a ``placeholder``.
        keys: what each value is called in a run of any network with the same containers.
        nodes: the other way round.
        last_uses: which values can be dropped after a node has run.
        operators: how many of them each call of a module ran by itself.
        depends: whether the run asked for a value, so that others may take another way.

    Raises:
        UnsupportedModel: the run fails while it is watched.
    """

    def __init__(self, model: nn.Module, leaves: Iterable[str], inputs: Any) -> None:
        tracer = _DispatchTracer(model, frozenset(leaves))
        for tensor in tensors(inputs):
            tracer.placeholder(tensor)
        try:
            with tracer.watching(), torch.no_grad():
                outputs = call(model, inputs)
        except Exception as error:  # forwards and torch raise whatever they do
            raise UnsupportedModel(f"the model fails while it is watched ({error})") from error
        self.graph = tracer.graph
        self.graph.output(tuple(tracer.node(tensor) for tensor in tensors(outputs)))
        self.keys = tracer.keys
        self.nodes = {key: node for node, key in self.keys.items()}
        self.constants = tracer.constants
        self.depends = tracer.depends
        self.operators = dict(tracer.operators)
        self.last_uses = self._last_uses()

    def _last_uses(self) -> dict[fx.Node, list[fx.Node]]:
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        dead: dict[fx.Node, list[fx.Node]] = {}
        for node in self.graph.nodes:
            last = max(node.users, key=position.__getitem__, default=node)
            dead.setdefault(last, []).append(node)
        return dead

    def layers(self) -> dict[Key, fx.Node]:
        """The calls of layers, in their order."""
        return {self.keys[n]: n for n in self.graph.nodes if n.op == "call_module"}

    def value(self, node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module) -> Any:
        """What a node gives, from the values of those before it and the parts of a module.

        Raises:
            UnsupportedModel: it gives nothing: with these values the network takes another way.
        """
        try:
            return self._value(node, values, module)
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            raise UnsupportedModel(f"a step fails on other inputs ({error})") from error

    def _value(self, node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module) -> Any:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_module":
            found = module.get_submodule(str(node.target))(*args, **kwargs)
            # what an earlier node holds must stay what it was
            inplace = getattr(module.get_submodule(str(node.target)), "inplace", False)
            return found.clone() if inplace and isinstance(found, Tensor) else found
        if node.op == "call_function":
            assert callable(node.target)
            return node.target(*args, **kwargs)
        if str(node.target) in self.constants:
            return self.constants[str(node.target)]
        found = module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def begin(self, inputs: Any) -> dict[fx.Node, Any]:
        """The values that a run begins with."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        return dict(zip(placeholders, tensors(inputs), strict=True))

    def run(
        self,
        values: dict[fx.Node, Any],
        nodes: Iterable[fx.Node],
        module: nn.Module,
        keep: Callable[[fx.Node], bool] = lambda node: False,
    ) -> None:
        """Run nodes, add what they give to ``values``, and drop what nothing reads any more."""
        for node in nodes:
            if node not in values:
                values[node] = self.value(node, values, module)
            for done in self.last_uses.get(node, ()):
                if not keep(done):
                    values.pop(done, None)

    @torch.no_grad()
    def check(self, module: nn.Module, inputs: Any) -> None:
        """See that the steps answer what the network itself answers, on other inputs.

        Args:
            module: that the steps are of.
            inputs: of the same shapes as those of the recorded run.

        Raises:
            UnsupportedModel: they do not: the way through the forward depends on what comes in.
        """
        values = self.begin(inputs)
        *body, output = self.graph.nodes
        kept = set(output.all_input_nodes)
        self.run(values, [n for n in body if n.op != "placeholder"], module, kept.__contains__)
        found = [values[node] for node in output.args[0]]
        wanted = call_flat(module, inputs)
        if len(wanted) != len(found) or not all(map(_near, wanted, found)):
            raise UnsupportedModel(
                "the model, run step by step, answers something else than as a whole: its way "
                "depends on what comes in"
            )


class Walk:
    """The steps of one network for inputs of whatever shapes, recorded where they are new.

    Args:
        module: in eval mode.
        leaves: see ``Steps``.
        example: inputs, at least one sample.
        strict: record every batch by itself where a run asks for values at all; otherwise only
            where two batches are seen to take different ways.

    Attributes:
        varies: whether every batch is recorded by itself.

    Raises:
        UnsupportedModel: see ``Steps``.
    """

    def __init__(
        self, module: nn.Module, leaves: Iterable[str], example: Any, *, strict: bool = True
    ) -> None:
        self.module, self.leaves = module, frozenset(leaves)
        self._known: dict[tuple[Any, ...], Steps] = {}
        count = max(1, min(2, batch_size(example) // 2))
        one, other = (take(example, slice(i * count, (i + 1) * count)) for i in (0, 1))
        self.varies = False
        steps = self.steps(one)
        several = batch_size(other) == count
        asks = strict and steps.depends
        self.varies = asks or (several and not self._holds(steps, other))

    def _holds(self, steps: Steps, inputs: Any) -> bool:
        try:
            steps.check(self.module, inputs)
        except UnsupportedModel as error:
            _log.debug("Every batch is recorded by itself: %s", error)
            return False
        return True

    def steps(self, inputs: Any) -> Steps:
        """What the network does with these inputs."""
        if self.varies:
            return Steps(self.module, self.leaves, inputs)
        key = tuple((tuple(t.shape), t.dtype, t.device) for t in tensors(inputs))
        if key not in self._known:
            self._known[key] = Steps(self.module, self.leaves, inputs)
        return self._known[key]


def _near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


class _DispatchTracer(OperatorMode):
    """Writes a run down."""

    def __init__(self, model: nn.Module, leaves: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.leaves = {m for m, name in self.names.items() if name in leaves or _is_leaf(m)}
        self.graph = fx.Graph()
        self.keys: dict[fx.Node, Key] = {}
        self.constants: dict[str, Tensor] = {}
        self.depends = False
        self._known: Any = WeakTensorKeyDictionary()
        self._parameters: Any = WeakIdKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._parameters[tensor] = name
        self._read: dict[str, fx.Node] = {}
        self._leaf: nn.Module | None = None
        self._entered: tuple[Any, Any, list[tuple[Tensor, int]]] = ((), {}, [])
        self._running: list[tuple[str, int]] = [("", 0)]
        self._calls: Counter[str] = Counter()
        self.operators: Counter[tuple[str, int]] = Counter()

    def placeholder(self, tensor: Tensor) -> None:
        """A tensor of the inputs."""
        node = self.graph.placeholder(f"input_{len(self.keys)}")
        self.keys[node] = ("", -1, len(self.keys), ())
        self._known[tensor] = node

    def node(self, tensor: Tensor) -> fx.Node:
        """Where a tensor comes from."""
        found = self._known.get(tensor)
        if found is not None:
            return found
        name = self._parameters.get(tensor)
        if name is None:
            name = f"constant {len(self.constants)}"
            self.constants[name] = tensor
            self._parameters[tensor] = name
        if name not in self._read:
            self._read[name] = self.graph.create_node("get_attr", name)
        return self._read[name]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all modules and operators; torch's fused encoder layers run as they are written."""
        with ExitStack() as stack:
            stack.enter_context(unfused_attention())
            for module in self.names:
                if module is self.model:
                    continue
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = module.register_forward_hook(self._leave)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._leaf is not None:
            return func(*args, **kwargs)
        named = pytree.tree_map_only(Tensor, self.node, (tuple(args), kwargs))
        out = func(*args, **kwargs)
        name = str(func.overloadpacket.__name__)
        self.depends |= not tensors(out) or name.startswith(_SHAPED_BY_VALUES)
        if tensors(out):
            at = self._running[-1]
            node = self.graph.create_node("call_function", func, *named)
            self._results(node, (*at, self.operators[at]), out)
            self.operators[at] += 1
        return out

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._leaf is not None:
            return
        name = self.names[module]
        self._running.append((name, self._calls[name]))
        self._calls[name] += 1
        if module in self.leaves:
            self._leaf = module
            named = pytree.tree_map_only(Tensor, self.node, (tuple(args), dict(kwargs)))
            self._entered = (*named, [(t, t._version) for t in tensors((args, kwargs))])

    def _leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if self._leaf is not None and self._leaf is not module:
            return
        at = self._running.pop()
        if self._leaf is None:
            return
        self._leaf = None
        named, keywords, before = self._entered
        if any(outputs is tensor and tensor._version == age for tensor, age in before):
            return  # it gives what it was given, as dropout does
        node = self.graph.create_node("call_module", self.names[module], named, keywords)
        self._results(node, (*at, -1), outputs)

    def _results(self, node: fx.Node, key: tuple[str, int, int], out: Any) -> None:
        """Note which tensors a step gave; those of a structure are taken out of it."""
        self.keys[node] = (*key, ())
        for path, tensor in _places(out):
            taken = node
            for depth, place in enumerate(path):
                taken = self.graph.create_node("call_function", operator.getitem, (taken, place))
                self.keys[taken] = (*key, path[: depth + 1])
            self._known[tensor] = taken


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers, which hold no other."""
    return type(module).__module__.startswith("torch.nn.modules") and not any(module.children())


def _places(value: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of tuples, lists and mappings, and the way to each."""
    if isinstance(value, Tensor):
        yield (), value
    elif isinstance(value, Mapping):
        for key in value:
            yield from (((key, *path), tensor) for path, tensor in _places(value[key]))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from (((i, *path), tensor) for path, tensor in _places(part))
