"""Float ``.tflite`` files, converted by ``litert-torch``, and what stands in such files.

The converter merges operators and names them in its own way. Here each operator's output gets the
canonical name of its layer, so that one entry of a quantizer's recipe means one operator, and so
that the gate finds layers in the file.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.errors import ExportError, explained
from autocompress.exporters.agreement import compare
from autocompress.exporters.names import canonical_name
from autocompress.exporters.silence import silent
from autocompress.model.tracing_stubs import unfused_attention
from autocompress.task.calling import Flat, call, input_names, is_flat
from autocompress.task.nested import batch_size, concat, take, tensors
from autocompress.techniques.compressed import Compressed
from autocompress.techniques.fold import fold_batch_norms

_WEIGHTED = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
    "EMBEDDING_LOOKUP",
)
"""Operators with a weight; all but the last multiply."""


def float_file(compressed: Compressed, example: Any, batch: int) -> Converted:
    """A compressed model as a float ``.tflite`` file that was run beside it.

    Args:
        compressed: whatever its precisions.
        example: inputs of two samples or more, built as the model takes them.
        batch: samples of an inference.

    Raises:
        ExportError: the converter does not take the model, or the file does not do what the
            module does.
    """
    if compressed.dynamic:
        raise ExportError(
            f"A LiteRT file has fixed sizes, but {sorted(compressed.dynamic)} have free axes. "
            "Leave `dynamic` out of the study: every text is then padded to one length."
        )
    folded = compressed.folded or fold_batch_norms(compressed.module)
    file = Converted.of(folded, samples(example, batch))
    judge = compressed.folded or compressed.module
    with torch.no_grad(), unfused_attention():
        for part in _portions(example, batch):
            compare(lambda _, parts: file.run(parts), judge, part)
    return file


def samples(example: Any, count: int) -> Any:
    """So many samples, repeated where the example has fewer."""
    times = -(-count // batch_size(example))
    return take(concat([example] * times) if times > 1 else example, slice(0, count))


def _portions(example: Any, batch: int) -> Iterator[Any]:
    """All samples of an example, in whole batches."""
    for start in range(0, batch_size(example), batch):
        yield samples(take(example, slice(start, start + batch)), batch)


@dataclass(frozen=True)
class Operator:
    """One operator of a file.

    Args:
        name: canonical.
        op: as the file format calls it, ``CONV_2D`` for example.
        inputs, outputs: numbers of tensors; absent ones left out.
    """

    name: str
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class Graph:
    """The main graph of a file.

    Args:
        model: the file as objects of ``ai_edge_litert.schema_py_generated``.
    """

    model: Any

    @classmethod
    def read(cls, content: bytes) -> Graph:
        """Of the content of a file."""
        from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

        return cls(read_model_from_bytearray(bytearray(content)))

    @property
    def main(self) -> Any:
        """The graph that an inference runs."""
        return self.model.subgraphs[0]

    @cached_property
    def operators(self) -> list[Operator]:
        """In the order in which they run, by the names of their outputs."""
        from ai_edge_litert.tools.flatbuffer_utils import opcode_to_name

        found = []
        for each in self.main.operators:
            inputs, outputs = (
                tuple(int(i) for i in side if i >= 0) for side in (each.inputs, each.outputs)
            )
            name = self.main.tensors[outputs[0]].name.decode() if outputs else ""
            op = opcode_to_name(self.model, each.opcodeIndex) or "CUSTOM"
            found.append(Operator(name, op, inputs, outputs))
        return found

    def weight(self, each: Operator) -> int | None:
        """The number of an operator's own weight, where it has one."""
        if each.op not in _WEIGHTED or not self.constant(each.inputs[1]):
            return None
        return each.inputs[1]

    def values(self, number: int) -> Any:
        """A float constant as a flat array; ``None`` for others."""
        if self.kind(number)[0] != "float":
            return None
        data = self.model.buffers[self.main.tensors[number].buffer].data
        return np.frombuffer(bytes(data), np.float32)

    def constant(self, number: int) -> bool:
        """Whether a tensor's values are in the file."""
        buffer = self.model.buffers[self.main.tensors[number].buffer]
        return buffer.data is not None and len(buffer.data) > 0

    def kind(self, number: int) -> tuple[str, tuple[int, ...]]:
        """Element type (as profiles have it) and shape of a tensor."""
        from ai_edge_litert.tools.flatbuffer_utils import type_to_name

        tensor = self.main.tensors[number]
        kind = type_to_name(tensor.type).lower().replace("float32", "float")
        return kind, tuple(int(d) for d in (() if tensor.shape is None else tensor.shape))


@dataclass
class Converted:
    """A float file with canonical names.

    Args:
        content: of the file.
        graph: in it.
        layers: name of an operator to the module that it came from.
    """

    content: bytes
    graph: Graph
    layers: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module, example: Any) -> Converted:
        """Convert a module.

        Args:
            module: float, in eval mode.
            example: inputs, of as many samples as an inference has.

        Raises:
            ExportError: the converter does not take it.
        """
        from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

        with silent():
            from litert_torch import convert
        with torch.no_grad(), unfused_attention():
            whole = _laid_out(module)
            flat = whole if is_flat(example, call(whole, example)) else Flat(whole, example)
            scopes = _scopes(flat, example)
            try:
                with silent():
                    made = convert(flat.eval(), tuple(tensors(example))).model_content()
            except Exception as error:  # a converter in several layers, each with errors of its own
                raise ExportError(
                    f"litert-torch cannot convert this model: {explained(error)}"
                ) from error
        graph = Graph.read(made)
        layers = _name(graph, flat, scopes, input_names(example))
        return cls(bytes(convert_object_to_bytearray(graph.model)), graph, layers)

    def run(self, parts: Sequence[torch.Tensor], every: bool = False) -> list[Any]:
        """Outputs of the file, or all its tensors by number (``None`` for those without values)."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        with silent():
            runner = Interpreter(
                model_content=self.content,
                num_threads=1,
                experimental_preserve_all_tensors=every,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            runner.allocate_tensors()
        for details, part in zip(runner.get_input_details(), parts, strict=True):
            runner.set_tensor(details["index"], part.numpy(force=True).astype(details["dtype"]))
        runner.invoke()
        if not every:
            return [runner.get_tensor(d["index"]) for d in runner.get_output_details()]
        return [_value(runner, number) for number in range(len(self.graph.main.tensors))]


def _value(runner: Any, number: int) -> Any:
    try:
        return runner.get_tensor(number)
    except ValueError:  # one that the runtime never filled
        return None


def _laid_out(module: nn.Module) -> nn.Module:
    """A copy in which every tensor lies in memory by itself, in the order of its axes.

    The converter knows constants by their memory: of two weights in another order it copies each
    for a moment, at one address, and takes the second for the first.
    """
    copied = copy.deepcopy(module)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copied


def _scopes(module: nn.Module, example: Any) -> dict[str, str]:
    """What the converter calls the place of each module's operators, and the module's path.

    It strings together the classes and last names of the modules that call one another.
    """
    stack: list[str] = []
    found: dict[str, str] = {}

    def enter(path: str) -> Any:
        def hook(called: nn.Module, args: Any) -> None:
            kind = type(called)
            last = f"_{path.rpartition('.')[2]}" if path else ""
            stack.append(f"{kind.__module__}.{kind.__qualname__}{last}")
            found.setdefault("/".join(stack), Flat.path(path) if isinstance(module, Flat) else path)

        return hook

    def leave(called: nn.Module, args: Any, answer: Any) -> None:
        stack.pop()

    handles = []
    for path, part in module.named_modules():
        handles += [part.register_forward_pre_hook(enter(path)), part.register_forward_hook(leave)]
    try:
        module(*tensors(example))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _name(
    graph: Graph, module: nn.Module, scopes: Mapping[str, str], inputs: Sequence[str]
) -> dict[str, str]:
    """Give operators canonical names, and inputs and outputs their places, in the file.

    Returns:
        Name of an operator to its module.
    """
    main, layers, taken = graph.main, {}, Counter[str]()
    owners, calls = _owners(module), Counter[str]()
    for each in graph.operators:
        weight = graph.weight(each)
        told = each.outputs[0] if weight is None else weight
        path, number = _origin(main.tensors[told].name.decode(), scopes), 0
        if weight is not None:
            key = _sorted(graph.values(weight))
            # equal weights of several modules are one constant: their operators come in turn
            number, turn = divmod(calls[key], len(owners.get(key, (path,))))
            path = owners.get(key, (path,))[turn]
            calls[key] += 1
        name = canonical_name(path, number, each.op)
        taken[name] += 1
        name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        layers[name] = path
        for place, output in enumerate(each.outputs):
            main.tensors[output].name = (f"{name}:{place}" if place else name).encode()
    (signature,) = graph.model.signatureDefs
    for side, names in (("inputs", inputs), ("outputs", None)):
        maps = sorted(getattr(signature, side), key=lambda m: int(m.name.rpartition(b"_")[2]))
        setattr(main, side, [m.tensorIndex for m in maps])
        for m, name in zip(maps, names or (), strict=names is not None):
            main.tensors[m.tensorIndex].name = name.encode()
    del graph.__dict__["operators"]
    return layers


def _owners(module: nn.Module) -> dict[str, list[str]]:
    """What a weight holds, in whatever order, to the modules that it belongs to."""
    found: dict[str, list[str]] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() > 1 and parameter.dtype == torch.float32:
            key = _sorted(parameter.detach().numpy().reshape(-1))
            found.setdefault(key, []).append(Flat.path(path.rpartition(".")[0]))
    return found


def _sorted(values: Any) -> str:
    """A digest of values in whatever order."""
    return "" if values is None else hashlib.sha256(np.sort(values).tobytes()).hexdigest()


def _origin(name: str, scopes: Mapping[str, str]) -> str:
    """The module that a tensor of the converter's naming came from; empty for the whole model."""
    parts = [part for part in name.split(";") if part in scopes]
    # merged operators name all that they came from: the innermost one has the weight
    return scopes[max(parts, key=lambda part: part.count("/"))] if parts else ""
