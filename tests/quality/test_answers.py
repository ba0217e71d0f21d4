"""What files answer, cut to the samples that were asked for, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.quality.answers import file_answers
from autocompress.targets import get_target
from autocompress.task.split import Split


class Priors(nn.Module):
    """Answers with boxes that belong to no sample, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)
        self.register_buffer("priors", torch.rand(8, 4))

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), self.priors * 2 + 0 * x.sum()


@pytest.mark.parametrize("fixed", [False, True])
def test_outputs_without_samples_stay_whole(fixed: bool, tmp_path: Path) -> None:
    """In batches of three and a last one of two; a file with a fixed batch is padded."""
    model, x = Priors().eval(), torch.randn(5, 6)
    path = ac.export(model, tmp_path / "m.onnx", example=x)
    if fixed:
        graph = onnx.load(str(path))
        for value in (graph.graph.input[0], graph.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 3
        onnx.save(graph, str(path))
    split = Split(x, torch.zeros(5))
    found = [o for o, _ in file_answers(get_target("onnxruntime"), path, split, batch=3)]
    with torch.no_grad():
        scores, priors = model(x)
    torch.testing.assert_close(torch.cat([o[0] for o in found]), scores, rtol=1e-4, atol=1e-5)
    for _, own in found:
        torch.testing.assert_close(own, priors)
