"""A cascade as one ONNX file: later stages are branches of an ``If``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.compose import add_prefix_graph

from autocompress.cascade.manifest import Manifest, Stage
from autocompress.errors import ExportError
from autocompress.policy.writing import replacing


def write_cascade(manifest: Manifest, folder: Path, path: Path) -> Path:
    """Write a cascade as one file for single inputs.

    An ``If`` decides for a whole batch, so that the file takes batches of one only. Confidences are
    computed in double precision, as in ``runtime.Cascade``: those of a network that is nearly
    always sure differ from 1, and from each other, by less than single precision tells apart.

    Args:
        manifest: of the cascade.
        folder: of its files.
        path: of the file to write.

    Raises:
        ExportError: files of different operator sets, inputs or outputs.
    """
    models = [[onnx.load(str(folder / n)) for n in stage.files] for stage in manifest.stages]
    first, last = models[0][0], models[-1][0]
    _check_alike(manifest, models)
    graph = _stages(manifest, models, 0)
    inputs = [_single(value) for value in first.graph.input]
    outputs = [_single(value) for value in last.graph.output]
    whole = helper.make_graph(graph.node, "cascade", inputs, outputs, list(graph.initializer))
    for node, output in zip(_ends(graph), outputs, strict=True):
        whole.node.append(helper.make_node("Identity", [node], [output.name], output.name))
    made = helper.make_model(
        whole, opset_imports=_operator_sets(models), ir_version=first.ir_version
    )
    for entry in first.metadata_props:
        made.metadata_props.add(key=entry.key, value=entry.value)
    onnx.checker.check_model(made)
    with replacing(path) as partial:
        onnx.save(made, str(partial))
    return path


def _stages(
    manifest: Manifest, models: Sequence[Sequence[Any]], place: int, handed: str = ""
) -> Any:
    """A graph of a stage and those after it; its outputs are named apart from the files'.

    Args:
        manifest, models: of the cascade.
        place: of the stage.
        handed: name of the features of the stage before, which a branch may read.
    """
    stage = manifest.stages[place]
    prefixes = [f"stage{place}/" if len(stage.files) == 1 else f"stage{place}.{i}/" for i in (0, 1)]
    own = [
        add_prefix_graph(copy.deepcopy(model.graph), prefix, rename_inputs=False)
        for model, prefix in zip(models[place], prefixes, strict=False)
    ]
    for one, model, prefix in zip(own, models[place], prefixes, strict=False):
        for value in model.graph.input:  # onnx before 1.19 renames what reads them all the same
            _read_instead(one, f"{prefix}{value.name}", value.name)
    if stage.takes == "features":
        _read_instead(own[0], own[0].input[0].name, handed)
    given = list(own[-1].output)[: len(models[-1][0].graph.output)]
    features = own[-1].output[-1].name  # of a file that hands them on
    graph = onnx.GraphProto(name=f"stage{place}")
    for one in own:
        graph.node.extend(one.node)
        graph.initializer.extend(one.initializer)
    ends = [output.name for output in given]
    if stage.threshold is None:
        graph.output.extend(_untyped(given))
        return graph
    sure = _Sure(graph, f"confidence{place}/", manifest.scores == "sigmoid")
    logits = [one.output[manifest.output].name for one in own]
    answered = sure.reaches(manifest, stage, logits)
    here = onnx.GraphProto(name=f"answered{place}")
    for end in ends:
        here.node.append(helper.make_node("Identity", [end], [f"answered/{end}"]))
    here.output.extend(_untyped(given, "answered/"))
    later = _stages(manifest, models, place + 1, features)
    found = [f"taken/{end}" for end in ends]
    graph.node.append(
        helper.make_node(
            "If", [answered], found, f"stage{place}/If", then_branch=here, else_branch=later
        )
    )
    graph.output.extend(_untyped(given, "taken/"))
    return graph


def _read_instead(graph: Any, name: str, other: str) -> None:
    """Let all nodes of a graph read another tensor, in place."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = other


class _Sure:
    """Adds the nodes that tell how sure a stage is.

    Args:
        graph: they are added to.
        prefix: of their names.
        sigmoid: the output is one logit, of yes.
    """

    def __init__(self, graph: Any, prefix: str, sigmoid: bool) -> None:
        self.graph, self.prefix, self.sigmoid = graph, prefix, sigmoid

    def reaches(self, manifest: Manifest, stage: Stage, logits: Sequence[str]) -> str:
        """Name of a scalar: whether the stage is as sure as its threshold."""
        kind = manifest.confidence
        both = [self._classes(name) for name in logits]
        if kind == "agreement":
            each = zip(both, stage.temperatures, strict=True)
            sure = self._node("Min", *(self._largest(one, t) for one, t in each))
            answers = [self._node("ArgMax", one, axis=1, keepdims=1) for one in both]
            same = self._node("Cast", self._node("Equal", *answers), to=TensorProto.DOUBLE)
            sure = self._node("Mul", sure, same)
        elif kind == "probability":
            sure = self._largest(both[0], stage.temperatures[0])
        elif kind == "margin":
            sure = self._margin(self._node("Softmax", both[0], axis=1))
        else:
            found = self._node("Softmax", both[0], axis=1)
            tiny = self._constant(np.array(np.finfo(np.float64).tiny))
            logs = self._node("Log", self._node("Max", found, tiny))
            axes = self._constant(np.array([1], np.int64))
            sure = self._node("ReduceSum", self._node("Mul", found, logs), axes, keepdims=1)
        threshold = self._constant(np.array([[stage.threshold]], np.float64))
        reached = self._node("GreaterOrEqual", sure, threshold)
        return self._node("Reshape", reached, self._constant(np.array([], np.int64)))

    def _largest(self, logits: str, temperature: float) -> str:
        """The largest probability, ``(1, 1)``."""
        scale = self._constant(np.array(1 / temperature, np.float64))
        found = self._node("Softmax", self._node("Mul", logits, scale), axis=1)
        return self._top(found, 1)[0]

    def _margin(self, probabilities: str) -> str:
        values = self._top(probabilities, 2)[0]
        each = self._constant(np.array([1, 1], np.int64))  # `num_outputs` is younger than files are
        parts = self._outputs("Split", [values, each], 2, axis=1)
        return self._node("Sub", *parts)

    def _top(self, probabilities: str, count: int) -> list[str]:
        k = self._constant(np.array([count], np.int64))
        return self._outputs("TopK", [probabilities, k], 2, axis=1)

    def _classes(self, name: str) -> str:
        """Logits ``(1, classes)`` in double precision."""
        found = self._node("Cast", name, to=TensorProto.DOUBLE)
        if not self.sigmoid:
            return found
        yes = self._node("Reshape", found, self._constant(np.array([1, 1], np.int64)))
        return self._node("Concat", self._constant(np.zeros((1, 1))), yes, axis=1)

    def _constant(self, value: Any) -> str:
        name = f"{self.prefix}constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self._outputs(op, list(inputs), 1, **attributes)[0]

    def _outputs(self, op: str, inputs: list[str], count: int, **attributes: Any) -> list[str]:
        name = f"{self.prefix}{op}{len(self.graph.node)}"
        names = [name if i == 0 else f"{name}.{i}" for i in range(count)]
        self.graph.node.append(helper.make_node(op, inputs, names, name, **attributes))
        return names


def _ends(graph: Any) -> list[str]:
    return [value.name for value in graph.output]


def _untyped(outputs: Any, prefix: str = "") -> list[Any]:
    """Outputs of a branch with their element types; shapes follow."""
    return [
        helper.make_tensor_value_info(
            f"{prefix}{value.name}", value.type.tensor_type.elem_type, None
        )
        for value in outputs
    ]


def _single(value: Any) -> Any:
    """An input or output of one sample."""
    found = copy.deepcopy(value)
    dims = found.type.tensor_type.shape.dim
    if dims:
        dims[0].Clear()
        dims[0].dim_value = 1
    return found


def _operator_sets(models: Sequence[Sequence[Any]]) -> list[Any]:
    found = {entry.domain: entry for stage in models for m in stage for entry in m.opset_import}
    return list(found.values())


def _check_alike(manifest: Manifest, models: Sequence[Sequence[Any]]) -> None:
    """Refuse files that cannot stand in one."""
    versions: dict[str, set[int]] = {}
    for model in (model for stage in models for model in stage):
        for entry in model.opset_import:
            versions.setdefault(entry.domain, set()).add(entry.version)
        if model.functions:
            raise ExportError("Files with functions of their own cannot be put into one.")
    mixed = {domain or "ai.onnx": found for domain, found in versions.items() if len(found) > 1}
    if mixed:
        raise ExportError(f"Files of different operator sets cannot be put into one: {mixed}.")
    taken, given = set(), set()
    for stage, own in zip(manifest.stages, models, strict=True):
        for model in own:
            outputs = [value.name for value in model.graph.output]
            given.add(tuple(outputs[: len(models[-1][0].graph.output)]))
            if stage.takes == "inputs":
                taken.add(tuple(value.name for value in model.graph.input))
    for what, names in (("input", taken), ("output", given)):
        if len(names) > 1:
            raise ExportError(f"Files with different {what}s cannot be put into one: {names}.")
