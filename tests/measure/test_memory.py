"""Peak memory of files grows by what their weights take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.errors import MeasurementError
from autocompress.measure.memory import peak_memory_bytes
from autocompress.targets import get_target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")


def _file(folder: Path, width: int) -> Path:
    """Two square linear layers."""
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)).eval()
    path = folder / f"{width}.onnx"
    torch.onnx.export(model, (torch.zeros(1, width),), path, dynamo=False)
    return path


def test_memory_grows_by_the_weights_once_or_a_few_times(tmp_path: Path) -> None:
    # the runtime holds the file and its own, packed copy of the weights for a while
    small = peak_memory_bytes(get_target("onnxruntime"), _file(tmp_path, 256))
    large = peak_memory_bytes(get_target("onnxruntime"), _file(tmp_path, 3072))
    assert small is not None
    assert large is not None
    more_weights = 2 * 4 * (3072**2 - 256**2)
    assert 0.9 * more_weights < large - small < 4 * more_weights


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(MeasurementError, match=r"broken\.onnx failed"):
        peak_memory_bytes(get_target("onnxruntime"), path)
