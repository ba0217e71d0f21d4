"""Canonical names of the nodes of an exported graph: ``module.path#call/Operator``.

``layer1.0.conv1#0/Conv`` is the convolution of the first call of ``layer1.0.conv1``. A second
convolution in the same call is ``.../Conv_1``. Nodes outside every submodule are ``graph/Add``.
Nodes are renamed once, right after the export; whoever needs a node's module asks ``layer_of``.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from torch import nn

from autocompress.exporters.onnx_reads import inner_graphs
from autocompress.task.calling import Flat, call_flat
from autocompress.task.nested import with_tensors

_MARKS = str.maketrans({mark: quote(mark, safe="") for mark in " #%"})
"""Keys of module dictionaries may hold what parts a name; it is written as in web addresses."""

LayerCall = tuple[str, str]
"""A module's path, and a mark that is the same for all nodes of one call of it."""


def layer_of(node_name: str) -> tuple[str, int] | None:
    """The module and the call that a node came from, or ``None`` outside of modules.

    Args:
        node_name: canonical, or what a runtime made of a canonical name: a word in front
            (``fused``), more words behind the operator.
    """
    module, _, rest = node_name.partition("#")
    call, slash, _ = rest.partition("/")
    module = unquote(module.rpartition(" ")[2])
    return (module, int(call)) if module and slash and call.isdecimal() else None


def canonical_name(module: str, call: int, operator: str) -> str:
    """The name that ``layer_of`` splits; ``graph/...`` where the module is the whole model."""
    return f"{module.translate(_MARKS)}#{call}/{operator}" if module else f"graph/{operator}"


class Traced(nn.Module):
    """A model whose modules are called ``m0``, ``m1``, ... while TorchScript traces it.

    Torch names a node after the attributes that lead to its module, without the names of module
    dictionaries, and with a number behind them from the second call on: ``conv_1`` may be a module
    or a call of ``conv``. Numbered modules leave no such doubt.

    Args:
        model: to trace.
        example: inputs, built as the model takes them.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self.model = model
        self.example = example
        self.paths = {f"m{i}": path for i, (path, _) in enumerate(model.named_modules())}

    def forward(self, *parts: Any) -> Any:
        """The tensors of the model's answer, one after another."""
        return tuple(call_flat(self.model, with_tensors(self.example, parts)))

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """The names under which the exporter looks modules up."""
        yield "", self
        yield from zip(self.paths, self.model.modules(), strict=True)

    def origin(self, node: Any) -> LayerCall | None:
        """Where a node of the exported graph came from, as in ``/m0/m4/m7_1/Conv``."""
        scopes = node.name.split("/")[:-1]
        path = self.paths.get(scopes[-1].partition("_")[0]) if scopes else None
        return (path, "/".join(scopes)) if path is not None else None


def program_origin(program: Any, model: nn.Module) -> Callable[[Any], LayerCall | None]:
    """The same for a graph of the dynamo exporter, whose nodes name their node of the program.

    Args:
        program: ``torch.export.ExportedProgram`` that the graph was made from.
        model: the program's source, ``Flat`` taken off; a module that it holds twice has one path.
    """
    first = {id(module): path for path, module in model.named_modules()}
    known = {path: first[id(m)] for path, m in model.named_modules(remove_duplicate=False)}
    marks: dict[str, LayerCall] = {}
    for node in program.graph.nodes:
        scope = program_scope(node)
        if scope is not None and scope[0] in known:
            marks[node.name] = (known[scope[0]], "@".join(map(str, scope)))

    def origin(node: Any) -> LayerCall | None:
        held = {p.key: p.value for p in node.metadata_props}
        scopes = held.get("pkg.torch.onnx.name_scopes")
        return marks.get(ast.literal_eval(scopes)[-1]) if scopes else None

    return origin


def program_scope(node: Any) -> tuple[str, int] | None:
    """Module path and number of the call of a node of an exported program."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return None
    key, (path, _) = list(stack.items())[-1]
    number = key.rpartition("@")[2] if "@" in key else "0"
    return (Flat.path(str(path)), int(number)) if number.isdecimal() else None


def name_nodes(model: Any, origin: Callable[[Any], LayerCall | None]) -> None:
    """Give the nodes of a graph, and the tensors that they make, canonical names, in place.

    Calls of a module are counted in graph order; a call that left no node is not counted.

    Args:
        model: ``onnx.ModelProto``.
        origin: where a node came from.
    """
    calls: dict[str, dict[str, int]] = {}
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    fixed = {o.name for o in model.graph.output}
    for node in model.graph.node:
        path, mark = origin(node) or ("", "")
        seen = calls.setdefault(path, {})
        name = canonical_name(path, seen.setdefault(mark, len(seen)), node.op_type)
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        del node.metadata_props[:]  # stack traces, with the paths of this machine
        renamed |= {
            output: f"{node.name}_output_{i}"
            for i, output in enumerate(node.output)
            if output and output not in fixed
        }
    for value in model.graph.initializer:
        renamed[value.name] = value.name.removeprefix("model.").removeprefix("flat_model.")
    rename_tensors(model.graph, renamed)


def rename_tensors(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they are read or made, graphs inside of nodes included."""
    for node in graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        node.output[:] = [names.get(o, o) for o in node.output]
        for inner in inner_graphs(node):
            rename_tensors(inner, names)
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
