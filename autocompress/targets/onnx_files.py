"""Runtimes that open ``.onnx`` files, and what such a file says of itself."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np

from autocompress.errors import InputError
from autocompress.exporters.metadata import SIZES_KEY
from autocompress.exporters.onnx_kernels import PRODUCTS, write_kernels, write_largest_products
from autocompress.machine.scratch import scratch_folder
from autocompress.targets.base import KernelWriter, Target

#: what runtimes merge into the node before
_FUSED_AFTER = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Cast"})


class OnnxTarget(Target):
    """Opens ``.onnx`` files; the base of runtimes that may compute them on integers."""

    suffix = ".onnx"

    def kernel_writer(self) -> KernelWriter | None:
        """ONNX files with a node per layer."""
        return write_kernels

    def products_overflow(self) -> bool:
        """Run the largest 8-bit products and compare their sum with the exact one."""
        with scratch_folder("saturation") as folder:
            path = write_largest_products(folder / "largest.onnx")
            asked = [np.ones((1, PRODUCTS), np.float32)]
            with closing(self.open(path)) as session:
                found = [session.run(asked)[0]]
            if self.elsewhere is not None:  # its quality is judged here, and it runs there
                found += self.elsewhere.ask("run", self.fields(), [path], arrays=asked)[1]
        return any(bool(np.abs(one - PRODUCTS).max() > 0.01 * PRODUCTS) for one in found)


def free_batch_names(file: Path) -> tuple[str, ...]:
    """Names of the symbolic first dimensions of the inputs."""
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's decode error is not exported
        raise InputError(f"{file} is not an ONNX file: {error}") from None
    own = {i.name for i in model.graph.initializer}
    shapes = [v.type.tensor_type.shape.dim for v in model.graph.input if v.name not in own]
    return tuple(dict.fromkeys(dims[0].dim_param for dims in shapes if dims and dims[0].dim_param))


def file_sizes(file: Path) -> dict[str, int]:
    """Axis name to the size that a file was exported with, of its free axes."""
    import onnx

    held = {p.key: p.value for p in onnx.load(str(file), load_external_data=False).metadata_props}
    found: dict[str, int] = json.loads(held.get(SIZES_KEY, "{}"))
    return found


def makers(file: Path) -> dict[str, str]:
    """Tensor to the node of the file that computed it, activations and casts looked through.

    Runtimes name a node after its output where they merge several into it, or where it is the
    last one; by then that may be an activation's output.
    """
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    by_output = {output: node for node in graph.node for output in node.output}
    found = {}
    for output, node in by_output.items():
        while node.op_type in _FUSED_AFTER and node.input[0] in by_output:
            node = by_output[node.input[0]]
        found[output] = node.name
    return found
