"""What a run tells of its model and data for the report."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from tiny_study import STUDY

from autocompress.run.assembly import assemble
from autocompress.run.model_facts import layer_facts, packed_labels
from autocompress.run.study import read_study
from autocompress.workloads.data import digits


def test_layers_and_labels_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MACs as they add up to the whole model's; labels of the val split, in its order."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    parts = assemble(read_study(STUDY), tmp_path)
    facts = layer_facts(parts)
    assert list(facts) == [layer.name for layer in parts.inventory.layers]
    assert all(told["ms"] > 0 for told in facts.values())
    total = sum(told["macs"] for told in facts.values())
    assert total == pytest.approx(parts.evaluator.baseline["macs"], rel=0.05)
    for name, told in facts.items():
        together = {n for n in facts if facts[n]["group"] == told["group"]}
        if told["group"] is not None:
            assert name in together
            assert len(together) > 1
            assert len({parts.inventory.layer(n).out_channels for n in together}) == 1
    packed = packed_labels(parts)
    assert packed is not None
    labels = np.frombuffer(base64.b64decode(packed), "<u2")
    assert labels.tolist() == digits().val.targets.tolist()
