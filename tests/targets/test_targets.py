"""What is peculiar to one built-in runtime, and the parts that all share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from measured_network import images, quantized, small

from autocompress.errors import InputError, TargetUnavailable
from autocompress.exporters.write import export
from autocompress.measure.memory import peak_memory_bytes
from autocompress.targets import (
    KernelClass,
    NodeTime,
    Profile,
    TensorSpec,
    available_targets,
    get_target,
    read_config,
    registry,
)
from autocompress.targets.base import random_inputs
from autocompress.techniques.compressed import Precision
from autocompress.techniques.quantize import rounded_weight, simulate

_HERE = {found.runtime: found for found in available_targets()}


_FULL = """
import resource, sys
from pathlib import Path
from autocompress.targets import get_target
from autocompress.targets.base import random_inputs
session = get_target("onnxruntime").open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
try:
    session.profile(random_inputs(session.inputs))
except OSError as error:
    print(error.strerror, error.filename)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_a_profile_that_a_full_disk_cut_off_says_so(exported: dict[str, Path]) -> None:
    """The runtime itself says nothing; a limit of the system stands for the end of a disk."""
    command = [sys.executable, "-c", _FULL, str(exported[".onnx"])]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("File too large"), found.stdout + found.stderr
    assert "autocompress-profile" in found.stdout


def test_a_runtime_is_available_or_says_why_not() -> None:
    assert [found.runtime for found in available_targets()] == [
        *("onnxruntime", "openvino", "torch", "executorch", "onnxruntime-web", "litert")
    ]
    for found in available_targets():
        assert found.available == (found.reason == "") == bool(found.version)
        assert bool(found.devices) == found.available
        assert found.as_dict()["devices"] == list(found.devices)
    assert _HERE["onnxruntime"].available
    assert _HERE["torch"].available


def test_an_absent_runtime_is_an_error_that_says_how_to_get_it() -> None:
    absent = [found for found in available_targets() if not found.available]
    for found in absent:
        with pytest.raises(TargetUnavailable, match=r"(pip|npm) install"):
            get_target(found.runtime)


def test_torch_kernels_see_the_threads_of_the_session(exported: dict[str, Path]) -> None:
    seen: list[int] = []
    with closing(get_target({"runtime": "torch", "threads": 2}).open(exported[".pt2"])) as session:
        opened: Any = session
        opened._module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        session.run(random_inputs(session.inputs))
    assert seen == [2]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux lists threads")
def test_onnxruntime_starts_one_thread_less_than_it_uses(exported: dict[str, Path]) -> None:
    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))

    before = tasks()
    with closing(get_target({"threads": 4}).open(exported[".onnx"])):
        assert tasks() - before == 3
    with closing(get_target({"threads": 1}).open(exported[".onnx"])):
        assert tasks() == before


_ON_ONE_CORE = """
import json, logging, os, sys
from contextlib import closing
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from autocompress.targets import get_target
target = get_target({"runtime": "openvino", "threads": 2})
logging.basicConfig(level="WARNING", stream=sys.stderr, format="%(message)s")
target.reach()
with closing(target.open(sys.argv[1])) as session:
    print(json.dumps([target.describe(), session.threads]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_fewer_threads_than_were_asked_for_are_told(exported: dict[str, Path]) -> None:
    """OpenVINO runs no more than the process has cores, which its records must not hide."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", _ON_ONE_CORE, str(exported[".onnx"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, used = json.loads(done.stdout)
    assert (told["threads"], told["threads_used"], used) == (2, 1, 1)
    assert "asks for 2" in done.stderr
    assert "OpenVINO runs 1" in done.stderr
    one = get_target({"runtime": "openvino", "threads": 1})
    assert "threads_used" not in one.describe()


def test_a_config_names_the_nearest_key_and_runtime() -> None:
    with pytest.raises(InputError, match="'threads'"):
        read_config({"thread": 2})
    with pytest.raises(InputError, match="onnxruntime"):
        read_config({"runtime": "onnx_runtime"})
    with pytest.raises(InputError, match="threads"):
        read_config({"threads": 0})


def test_profiles_carry_the_names_of_the_file(exported: dict[str, Path]) -> None:
    file = {n.name for n in onnx.load(str(exported[".onnx"])).graph.node}
    with closing(get_target("onnxruntime").open(exported[".onnx"])) as session:
        profile = session.profile(random_inputs(session.inputs), runs=2)
    convolutions = [n for n in profile.nodes if "Conv" in n.op]
    # blocked layouts are named after tensors by the runtime; here they carry their own names again
    assert {n.name for n in convolutions} == {n for n in file if n.endswith("/Conv")}
    with closing(get_target("torch").open(exported[".pt2"])) as session:
        profile = session.profile(random_inputs(session.inputs), runs=2)
    scopes = [n.name.partition("/")[0] for n in profile.nodes if "conv2d" in n.op]
    assert scopes == ["first#0", "deep#0", "last#0"]


def test_random_inputs_fit_what_is_asked() -> None:
    specs = [
        TensorSpec("x", (None, 3, 4), "float32"),
        TensorSpec("tokens", (2, 5), "int64"),
        TensorSpec("mask", (None, 5), "bool"),
    ]
    x, tokens, mask = random_inputs(specs, batch=6, seed=1)
    assert (x.shape, tokens.shape, mask.shape) == ((6, 3, 4), (2, 5), (6, 5))
    assert (x.dtype, tokens.dtype, mask.dtype) == (np.float32, np.int64, np.bool_)
    assert set(np.unique(tokens)) <= {0, 1}
    np.testing.assert_array_equal(x, random_inputs(specs, batch=6, seed=1)[0])
    with pytest.raises(InputError, match="nothing tells how long"):
        random_inputs([TensorSpec("x", (None, None), "float32")])


def test_a_profile_sums_by_operator() -> None:
    nodes = (
        NodeTime("a", "Conv", 1.0),
        NodeTime("b", "Add", 3.0),
        NodeTime("c", "Conv", 1.5),
        NodeTime("d", "Relu", float("nan")),
    )
    profile = Profile(nodes, 6.0)
    assert list(profile.by_op().items()) == [
        ("Add", (1, 3.0)),
        ("Conv", (2, 2.5)),
        ("Relu", (1, 0.0)),
    ]
    assert profile.as_dict()["ops"]["Conv"] == {"nodes": 2, "ms": 2.5}


@pytest.mark.parametrize(
    ("runtime", "op", "kind"),
    [
        ("onnxruntime", "QLinearConv", KernelClass.INTEGER),
        ("onnxruntime", "MatMulIntegerToFloat", KernelClass.INTEGER),
        ("onnxruntime", "FusedConv", KernelClass.FLOAT),
        ("onnxruntime", "MultiHeadAttention", KernelClass.FLOAT),
        ("onnxruntime", "QuantizeLinear", KernelClass.QUANTIZE),
        ("onnxruntime", "ReorderInput", KernelClass.LAYOUT),
        ("onnxruntime", "QLinearSoftmax", KernelClass.OTHER),
        ("openvino", "Convolution_i8", KernelClass.INTEGER),
        ("openvino", "FullyConnected_u8", KernelClass.INTEGER),
        ("openvino", "Convolution", KernelClass.FLOAT),
        ("openvino", "Convert", KernelClass.LAYOUT),
        ("openvino", "Reorder_i8", KernelClass.LAYOUT),
        ("openvino", "FakeQuantize", KernelClass.QUANTIZE),
        ("torch", "aten.conv2d.default", KernelClass.FLOAT),
        ("torch", "aten.linear.default", KernelClass.FLOAT),
        ("torch", "aten.relu.default", KernelClass.OTHER),
        ("torch", "aten.permute.default", KernelClass.LAYOUT),
        ("torch", "graph_0_cpp_fused_convolution_relu_0", KernelClass.FUSED),
        ("executorch", "XnnpackBackend", KernelClass.FUSED),
    ],
)
def test_kernels_are_classed_by_the_runtime_that_has_them(
    runtime: str, op: str, kind: KernelClass
) -> None:
    assert registry.load(runtime).classify(NodeTime("/a/b", op, 1.0)) is kind


def shaped(op: str, output: tuple[int, ...], *inputs: tuple[int, ...]) -> NodeTime:
    return NodeTime("/a/b", op, 1.0, tuple(("float", s) for s in inputs), (("float", output),))


def test_channels_are_counted_where_they_lie() -> None:
    torch_, onnx_ = get_target("torch"), get_target("onnxruntime")
    plain = shaped("aten.conv2d.default", (1, 10, 4, 4))
    assert torch_.shows_channels(plain, 10, linear=False)
    assert not torch_.shows_channels(plain, 9, linear=False)
    assert torch_.shows_channels(shaped("aten.linear.default", (1, 7, 6)), 6, linear=True)
    # blocks of 4, 8 and 16 hide up to 15 channels, never fewer than are there
    blocked = shaped("Conv", (1, 16, 4, 4))
    assert [n for n in range(1, 18) if onnx_.shows_channels(blocked, n, linear=False)] == list(
        range(1, 17)
    )
    # channels last, told by the scales
    last = shaped("QLinearConv", (1, 4, 4, 10), (1, 4, 4, 3), (10,))
    assert onnx_.shows_channels(last, 10, linear=False)
    assert not onnx_.shows_channels(last, 4, linear=False)


def test_weights_of_few_bits_are_rounded_once(tmp_path: Path) -> None:
    """In the file, not at every inference."""
    precisions = {"first": Precision(8, 8), "head": Precision(4)}
    compressed = quantized(small(), precisions)
    path = export(compressed, tmp_path / "m.pt2", images(2)).path
    program = torch.export.load(path)
    for name in precisions:
        held = program.state_dict[f"{name}.layer.weight"]
        torch.testing.assert_close(
            held, rounded_weight(compressed.folded.get_submodule(name), precisions[name])
        )
    rounds = [n for n in program.graph.nodes if "round" in str(n.target)]
    activations = [key for key in compressed.ranges or {} if key.endswith((":in", ":out"))]
    assert len(rounds) == len(activations) == 2
    with torch.inference_mode():
        found = program.module()(images(2))
        torch.testing.assert_close(found, simulate(compressed)(images(2)))


def test_executorch_prints_nothing(exported: dict[str, Path]) -> None:
    """Neither when it is looked for nor when it opens and runs a file."""
    pytest.importorskip("executorch")
    code = (
        "import numpy as np\nfrom autocompress.targets import get_target\n"
        f"session = get_target('executorch').open({str(exported['.pt2'])!r})\n"
        "session.run([np.zeros((1, 3, 8, 8))])\nsession.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_memory_of_a_program_is_without_that_of_lowering_it(exported: dict[str, Path]) -> None:
    """Running a hundred weights takes little; lowering them takes hundreds of megabytes."""
    pytest.importorskip("executorch")
    found = peak_memory_bytes(get_target("executorch"), exported[".pt2"])
    assert found is None or found < 50e6


def test_a_program_is_lowered_for_phones(tmp_path: Path) -> None:
    """The ``.pte`` file computes what the ``.pt2`` file does, which is lowered when opened."""
    pytest.importorskip("executorch")
    target = get_target({"runtime": "executorch", "batch": 2})
    files = [tmp_path / "m.pt2", tmp_path / "m.pte"]
    inputs = [images(2).numpy()]
    answers = []
    for file in files:
        made = target.export(quantized(small(), {}), file, images())
        assert made.size_bytes == file.stat().st_size
        with closing(target.open(file)) as session:
            answers.append(session.run(inputs)[0])
    np.testing.assert_array_equal(answers[0], answers[1])
    assert sorted(tmp_path.iterdir()) == files


_STACKS = """
import ctypes, gc, sys
from autocompress.targets import get_target

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def signals():
    found = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.start

first = get_target("openvino").open(sys.argv[1])
seen = {signals()}
second = get_target({"runtime": "openvino", "threads": 2}).open(sys.argv[1])
seen.add(signals())
del first
gc.collect()
seen.add(signals())
del second
gc.collect()
seen.add(signals())
print(len(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes it on Linux alone")
def test_openvino_leaves_signals_a_stack_that_is_there(exported: dict[str, Path]) -> None:
    """On a processor with AMX it makes one; without AMX this cannot fail."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", _STACKS, str(exported[".onnx"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_threads_that_ask_together_share_one_core_of_openvino(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second one, which nobody keeps, would be freed at once."""
    openvino = pytest.importorskip("openvino")
    from autocompress.targets import open_vino

    both, made = threading.Barrier(2, timeout=2.0), []

    def core() -> object:
        with suppress(threading.BrokenBarrierError):  # nobody else is here, as it should be
            both.wait()
        made.append(object())
        return made[-1]

    found: list[object] = []
    monkeypatch.setattr(openvino, "Core", core)
    open_vino._made_core.cache_clear()
    try:
        threads = [
            threading.Thread(target=lambda: found.append(open_vino._core())) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        open_vino._made_core.cache_clear()
    assert len(made) == 1
    assert found == made * 2
