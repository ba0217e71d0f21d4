"""What a run tells of its model and data for the report."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tiny_study import STUDY

from autocompress.policy.policy import Policy
from autocompress.results.trial import Trial
from autocompress.run.assembly import assemble
from autocompress.run.model_facts import each_alone, layer_facts, packed_labels
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


def test_what_each_layer_costs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against estimates of policies with one layer changed, and the sum of all divergences."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    parts = assemble(read_study({**STUDY, "baseline": None, "space": "prune_int8"}), tmp_path)
    parts.predict_latency()
    rng, space = np.random.default_rng(0), parts.space
    losses = [rng.random(len(c.levels)) * (np.arange(len(c.levels)) > 0) for c in space.choices]
    drawn = [tuple(int(rng.integers(len(c.levels))) for c in space.choices) for _ in range(3)]
    trials = [Trial(i, space.decode(levels)) for i, levels in enumerate(drawn)]
    view = SimpleNamespace(compared=trials, front=trials[:1], reference_trials={}, nearest=None)
    found = each_alone(parts, cast(Any, view), losses)
    assert found is not None
    assert list(found["trials"]) == ["0", "2", "1"], "the front's first, then the latest"
    uncompressed = parts.evaluator.estimate(Policy())["latency_ms"]
    for trial, levels in zip(trials, drawn, strict=True):
        told = [found["table"][i] for i in found["trials"][str(trial.number)]]
        nats = sum(loss[level] for loss, level in zip(losses, levels, strict=True))
        assert sum(kl for _, kl in told) == pytest.approx(nats, rel=1e-3)
        for (ms, _), name in zip(told, found["layers"], strict=True):
            shared = {n for c in space.choices for n in c.layers if len(c.layers) > 1}
            if name not in shared:
                one = Policy({name: trial.policy[name]})
                expected = parts.evaluator.estimate(one)["latency_ms"] - uncompressed
                assert ms == pytest.approx(expected, rel=1e-3, abs=1e-6)
    without = each_alone(parts, cast(Any, view), ())
    assert without is not None
    assert {kl for _, kl in without["table"]} == {None}
