"""Tidy a freshly exported ONNX graph, so that quantizer and runtime see what is really there.

Shape arithmetic on constants hides tensor types from the quantizer: without folding it, ranks are
unknown past a padded shortcut, and everything after it stays in float.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.exporters.onnx_pads import fold_padding
from autocompress.exporters.onnx_reads import read_in, reads

_LARGEST = 65_536
"""Elements; larger constants (expanded masks, position tables) stay computed."""
_MOVERS = ("Flatten", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def simplify(model: Any) -> None:
    """Fold constants and paddings, and write what is left as runtimes have kernels for, in place.

    Args:
        model: ``onnx.ModelProto`` from torch's exporter.
    """
    fold_constants(model)
    merge_subsampling(model)
    fold_padding(model)
    pool_means(model)
    clip_early(model)
    drop_unused(model.graph)


def fold_constants(model: Any) -> None:
    """Replace nodes that depend on constants only by initializers, in place.

    Copies of shared initializers (``Identity``) become initializers of their own, so that each
    layer has its weight.
    """
    from onnx import numpy_helper

    graph = model.graph
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if value is not None:
            held = graph.initializer.add()
            held.CopyFrom(value)
            held.name = node.output[0]
            graph.node.remove(node)
    weights = {i.name: i for i in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Identity" and n.input[0] in weights]:
        held = graph.initializer.add()
        held.CopyFrom(weights[node.input[0]])
        held.name = node.output[0]
        weights[held.name] = held
        graph.node.remove(node)
    constants = set(weights)
    outputs = {o.name for o in graph.output}
    foldable = []
    for node in graph.node:
        inputs = [i for i in node.input if i]
        if inputs and all(i in constants for i in inputs) and not _keeps(node, outputs):
            foldable.append(node)
            constants.update(node.output)
    if foldable:
        values = _evaluate(model, foldable)
        big = {n for n, v in values.items() if v.size > _LARGEST}
        for node in foldable:
            if not any(o in big for o in node.output):
                graph.node.remove(node)
        graph.initializer.extend(
            numpy_helper.from_array(v, n) for n, v in values.items() if n not in big
        )
    drop_unused(graph)


def _keeps(node: Any, outputs: set[str]) -> bool:
    random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
    graphs = any(a.HasField("g") or a.graphs for a in node.attribute)
    layer = node.op_type in ("Conv", "Gemm", "MatMul", "Gather", "DequantizeLinear")
    return random or graphs or layer or any(o in outputs for o in node.output)


def _evaluate(model: Any, nodes: list[Any]) -> dict[str, NDArray[Any]]:
    """Outputs of nodes that need no input, from one run of the runtime."""
    import onnx
    import onnxruntime as ort

    made = {o for n in nodes for o in n.output}
    needed = {i for n in nodes for i in n.input}
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(i for i in model.graph.initializer if i.name in needed)
    part.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in sorted(made))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, {})), strict=True))


def drop_unused(graph: Any) -> None:
    """Take out the constants that nothing reads: runtimes warn of them, and files grow."""
    used = set(read_in(graph))
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def merge_subsampling(model: Any) -> None:
    """Turn strided slices of both image axes and a channel padding into one 1x1 convolution.

    That is the parameter-free shortcut of small ResNets (He et al., 2016, option A). Its weights
    are zeros and ones, the result the same; the runtime has an integer kernel for it but none for
    ``Pad``, so without this the residual stream would leave the integers at every stage.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    channels: dict[str, int] | None = None
    for pad in [n for n in graph.node if n.op_type == "Pad"]:
        chain = _subsampling(graph, pad, constants, readers)
        if chain is None:
            continue
        source, slices, step, (before, after) = chain
        channels = channels if channels is not None else _channels(model)
        count = channels.get(source)
        if count is None:
            continue
        weight = np.zeros((before + count + after, count, 1, 1), np.float32)
        weight[np.arange(count) + before, np.arange(count)] = 1.0
        name = pad.name.replace("/Pad", "/Subsample")
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}.weight"))
        conv = onnx.helper.make_node(
            "Conv",
            [source, f"{name}.weight"],
            [pad.output[0]],
            name=name,
            kernel_shape=[1, 1],
            strides=step,
        )
        graph.node.insert(list(graph.node).index(pad), conv)
        for gone in (pad, *slices):
            graph.node.remove(gone)
    drop_unused(graph)


def _subsampling(
    graph: Any, pad: Any, constants: dict[str, Any], readers: dict[str, list[Any]]
) -> tuple[str, list[Any], list[int], tuple[int, int]] | None:
    """Source, slices, steps and padded channels, if a ``Pad`` ends such a shortcut."""
    from onnx import numpy_helper

    def value(name: str) -> NDArray[Any] | None:
        return numpy_helper.to_array(constants[name]) if name in constants else None

    modes = [a.s for a in pad.attribute if a.name == "mode"]
    pads = value(pad.input[1]) if len(pad.input) > 1 else None
    fill = value(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    if modes not in ([], [b"constant"]) or pads is None or len(pads) != 8:
        return None
    if (fill is not None and fill.item() != 0) or (pads < 0).any():
        return None
    if pads[[0, 2, 3, 4, 6, 7]].any():
        return None
    makers = {o: n for n in graph.node for o in n.output}
    steps = {2: 1, 3: 1}
    slices: list[Any] = []
    source = pad.input[0]
    while (node := makers.get(source)) is not None and node.op_type == "Slice":
        if len(node.input) < 5 or len(readers.get(source, ())) != 1:
            return None
        starts, ends, axes, stride = (value(i) for i in node.input[1:5])
        if starts is None or ends is None or axes is None or stride is None or starts.any():
            return None
        if (ends < 2**31 - 1).any() or any(int(a) not in steps for a in axes):
            return None
        for axis, jump in zip(axes, stride, strict=True):
            steps[int(axis)] *= int(jump)
        slices.append(node)
        source = node.input[0]
    if not slices:
        return None
    return source, slices, [steps[2], steps[3]], (int(pads[1]), int(pads[5]))


def pool_means(model: Any) -> None:
    """Turn means over both image axes into global poolings, in place; these have integer kernels.

    Args:
        model: ``onnx.ModelProto``, float, of opset 18, where axes are an input.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    images: dict[str, int] | None = None
    for node in [n for n in graph.node if n.op_type == "ReduceMean" and len(n.input) > 1]:
        if node.input[1] not in constants:
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(constants[node.input[1]]))
        images = images if images is not None else _channels(model)
        if axes != [2, 3] or node.input[0] not in images:
            continue
        kept = all(a.i for a in node.attribute if a.name == "keepdims")
        output = node.output[0] if kept else f"{node.output[0]}_pooled"
        pooled = onnx.helper.make_node(
            "GlobalAveragePool", [node.input[0]], [output], name=node.name
        )
        place = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(place, pooled)
        if not kept:
            flat = onnx.helper.make_node(
                "Flatten", [output], [node.output[0]], name=f"{node.name}_flat"
            )
            graph.node.insert(place + 1, flat)


def clip_early(model: Any) -> None:
    """Put a ReLU or clip right behind the layer whose output is only moved in between, in place.

    There it costs nothing, in float as in integers; maxima and moved values are the same.
    """
    graph = model.graph
    makers = {o: n for n in graph.node for o in n.output}
    read = Counter(read_in(graph))
    for clip in [n for n in graph.node if n.op_type in ("Relu", "Clip")]:
        mover = makers.get(clip.input[0])
        if mover is None or mover.op_type not in _MOVERS or len(mover.output) > 1:
            continue
        if read[clip.input[0]] != 1:
            continue
        layer = makers.get(mover.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm") or read[mover.input[0]] != 1:
            continue
        place = list(graph.node).index(mover)
        graph.node.remove(clip)
        source, end = mover.input[0], clip.output[0]
        # another name, as the moved tensor may have had another shape
        clip.input[0], clip.output[0] = source, f"{source}_clipped"
        mover.input[0], mover.output[0] = clip.output[0], end
        graph.node.insert(place, clip)


def _channels(model: Any) -> dict[str, int]:
    """Channel counts of the tensors whose shape can be inferred."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for info in (*inferred.value_info, *inferred.input):
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 4 and dims[1].dim_value > 0:
            found[info.name] = dims[1].dim_value
    return found
