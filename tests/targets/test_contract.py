"""Every built-in target keeps to the public contract."""

from __future__ import annotations

from typing import ClassVar

import pytest

from autocompress.machine.facts import cores
from autocompress.testing.target import TargetContract


class TestOnnxRuntime(TargetContract):
    config = "onnxruntime"


class TestOpenVino(TargetContract):
    config = "openvino"
    # it takes no more than there are cores for this process
    threads: ClassVar = (1, 2) if len(cores()) != 1 else (1,)


class TestTorch(TargetContract):
    config = "torch"


@pytest.mark.slow
class TestTorchCompiled(TargetContract):
    config: ClassVar = {"runtime": "torch", "compile": True}


@pytest.mark.gpu
class TestTorchOnCuda(TargetContract):
    config: ClassVar = {"runtime": "torch", "device": "cuda"}
    # convolutions may run in TF32 there
    tolerance: ClassVar = 5e-3


class TestExecuTorch(TargetContract):
    config = "executorch"


class TestOnnxRuntimeWeb(TargetContract):
    config = "onnxruntime-web"


class TestLiteRt(TargetContract):
    config = "litert"


@pytest.mark.gpu
class TestTorchCompiledOnCuda(TargetContract):
    config: ClassVar = {"runtime": "torch", "device": "cuda", "compile": True}
    tolerance: ClassVar = 5e-3
