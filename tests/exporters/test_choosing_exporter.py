"""Which of torch's exporters writes a model, what it says where none can, and what it prints."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import autocompress as ac
from autocompress.errors import ExportError
from autocompress.exporters import onnx_graph
from autocompress.exporters.onnx_graph import float_graph
from autocompress.exporters.silence import silent

Change = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """Something between two linear layers."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.change = nn.Linear(8, 16), nn.Linear(16, 3), change

    def forward(self, x: Tensor) -> Any:
        return self.b(self.change(self.a(x)))


def doubled_half(x: Tensor) -> Tensor:
    x[:, :8].mul_(2.0)
    return x


def zeroed_rows(x: Tensor) -> Tensor:
    x.view(-1, 4, 4)[:, 1].zero_()
    return x


def added_and_set(x: Tensor) -> Tensor:
    x[:, 8:] += 1.0
    x[:, 3] = 0.5
    return x.relu_()


class Scaled(nn.Module):
    """Answers a number of its own beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Linear(8, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.scale * 1.0


def answers(path: Path, x: Tensor) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x.numpy()}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Between(doubled_half),
        lambda: Between(zeroed_rows),
        lambda: Between(added_and_set),
        Scaled,
    ],
)
def test_a_wrong_graph_of_one_exporter_is_left_to_the_other(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    path = tmp_path / "model.onnx"
    ac.export(model, path, example=torch.randn(2, 8))
    for count in (1, 5):
        x = torch.randn(count, 8)
        with torch.no_grad():
            wanted = model(x)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for got, own in zip(answers(path, x), wanted, strict=True):
            np.testing.assert_allclose(got, own.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: functional.dropout(x, 0.3, training=True),
        lambda x: x + 0.1 * torch.randn(1),
        lambda x: x * (torch.rand_like(x) > 0.5),
    ],
)
def test_a_model_that_draws_is_called_random(noise: Change, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"random numbers.*self\.training"):
        ac.export(Between(noise).eval(), tmp_path / "m.onnx", example=torch.randn(2, 8))


def test_exporting_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """TorchScript's exporter lists the whole graph of a model that it refuses."""
    caplog.set_level(logging.DEBUG, "autocompress.exporters")
    ac.export(Between(nn.RMSNorm(16)).eval(), tmp_path / "m.onnx", example=torch.randn(2, 8))
    assert capfd.readouterr() == ("", "")
    assert "rms_norm" in caplog.text


def test_what_was_printed_is_a_note_of_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(1, b"from a library\n")
        print("from python", file=sys.stderr)
        raise ValueError("short")

    with pytest.raises(ValueError, match="short") as caught, silent():
        fail()
    assert str(caught.value) == "short"
    (note,) = caught.value.__notes__
    assert "from a library" in note
    assert "from python" in note
    assert capfd.readouterr() == ("", "")
    os.write(1, b"shown\n")
    assert capfd.readouterr().out == "shown\n"


def test_counting_costs_warns_of_nothing() -> None:
    code = (
        "import torch; from autocompress.model.cost import count_macs;"
        "assert count_macs(torch.nn.Linear(2, 3).eval(), torch.randn(1, 2)).total == 6"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr


def test_an_exporter_that_refused_an_architecture_is_asked_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(onnx_graph, "_took", {})

    def refused(*args: Any) -> Any:
        asked.append("torchscript")
        raise RuntimeError("no")

    own = onnx_graph._EXPORTERS["torchscript"]

    def taken(*args: Any) -> Any:
        asked.append("dynamo")
        return own(*args)

    monkeypatch.setitem(onnx_graph._EXPORTERS, "torchscript", refused)
    monkeypatch.setitem(onnx_graph._EXPORTERS, "dynamo", taken)
    model, x = Between(torch.relu).eval(), torch.randn(1, 8)
    for architecture in ("one", "one", "other", "one", ""):
        float_graph(model, x, architecture=architecture)
    wanted = ["torchscript", "dynamo", "dynamo", "torchscript", "dynamo", "dynamo"]
    assert asked == [*wanted, "torchscript", "dynamo"]
