"""Recurrent layers over packed sequences: in a file, or refused with what to write instead."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import autocompress as ac
from autocompress.errors import ExportError


class Speech(nn.Module):
    """Reads the last state of each sequence.

    Args:
        padded: of a padded batch, as the refusal says; else of a packed one.
        again: from outputs that are padded again; else from the states.
    """

    def __init__(self, padded: bool = False, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.cell = nn.Linear(6, 8), nn.LSTM(8, 12, batch_first=True)
        self.head, self.padded, self.again = nn.Linear(12, 3), padded, again

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        if self.padded:
            outputs, _ = self.cell(x)
            last = (lengths - 1)[:, None, None].expand(-1, 1, outputs.shape[2])
            return self.head(outputs.gather(1, last)[:, 0])
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, (state, _) = self.cell(packed)
        if not self.again:
            return self.head(state[-1])
        padded = pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0]
        return self.head(padded[torch.arange(len(x)), lengths - 1])


X, LENGTHS = torch.randn(4, 10, 6), torch.tensor([3, 10, 5, 8])


def test_states_of_packed_sequences_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cell reads a packed sequence.*Give it the padded"):
        ac.export(Speech().eval(), tmp_path / "m.onnx", example=(X, LENGTHS))


@pytest.mark.parametrize("how", [{"again": True}, {"padded": True}])
def test_what_is_padded_is_the_same_model_in_a_file(how: dict[str, bool], tmp_path: Path) -> None:
    path = ac.export(Speech(**how).eval(), tmp_path / "m.onnx", example=(X, LENGTHS))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for count, lengths in ((4, LENGTHS), (4, LENGTHS.flip(0)), (3, torch.tensor([1, 2, 10]))):
        given = (X[:count].numpy(), lengths.numpy())
        (found,) = session.run(None, dict(zip(names, given, strict=True)))
        with torch.no_grad():
            wanted = Speech().eval()(X[:count], lengths)
        torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-3, atol=1e-4)
