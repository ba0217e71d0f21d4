"""What docs/use.md says of running a file, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.exporters.onnx_graph import float_graph

PAGE = Path(__file__).parent.parent / "docs" / "use.md"


class Text(nn.Module):
    """Token ids and a mask, of any length, as BERT takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids) * attention_mask[..., None]
        return self.head(x.sum(1) / (attention_mask.sum(1, keepdim=True) + 1))


IDS = torch.ones(2, 5).long()
FREE = {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}
FILES: dict[str, tuple[nn.Module, Any, Any]] = {
    "image": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 6, 6), {}),
    "text": (Text(), {"input_ids": IDS, "attention_mask": IDS}, FREE),
}


@pytest.mark.parametrize("name", FILES)
def test_the_lines_that_run_a_file_run(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, example, free = FILES[name]
    model.eval()
    graph = float_graph(model, example, dynamic=free)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text(encoding="utf-8").partition("## Where it runs")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1], names)
    given = {n: torch.as_tensor(a) for n, a in names["inputs"].items()}
    with torch.no_grad():
        wanted = model(**given) if name == "text" else model(*given.values())
    (output, *_) = names["session"].run(None, names["inputs"])
    np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out.startswith("[[")
