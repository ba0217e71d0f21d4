"""Anyone's files are told apart by measuring: which are worth shipping, why others are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_study import STUDY, call

from autocompress.results.difference import pack_hits
from autocompress.results.metric import Measurement
from autocompress.run.judge import Judged, beaten, beats
from autocompress.workloads.data import digits


def judged(name: str, low: float, high: float, wrong: list[int] | None) -> Judged:
    """A file that answers 200 samples rightly but those."""
    if wrong is None:
        return Judged(name, low, high, None)
    hits = np.ones(200, bool)
    hits[wrong] = False
    value = float(hits.mean())
    context = {"images": 200, "hits": pack_hits(hits), "split": "val"}
    return Judged(name, low, high, Measurement({"accuracy": value}, {"accuracy": 0.01}, context))


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ((0.4, 0.5, []), (0.6, 0.7, []), "as good and faster"),
        ((0.4, 0.6, []), (0.5, 0.7, []), ""),  # the intervals overlap
        ((1.0, 1.0, []), (1.001, 1.007, []), ""),  # so may two timings of one file
        ((0.4, 0.6, []), (0.5, 0.7, [*range(9)]), "better and as fast"),
        ((0.4, 0.5, []), (0.6, 0.7, [*range(9)]), "better and faster"),
        ((0.4, 0.5, [*range(9)]), (0.6, 0.7, []), ""),  # faster, and clearly worse
        ((0.4, 0.5, [0, 1]), (0.6, 0.7, [1]), "as good and faster"),  # one sample is noise
        ((0.8, 0.9, []), (0.6, 0.7, [*range(9)]), ""),
        ((0.4, 0.6, [0]), (0.4, 0.6, None), "better and as fast"),  # nothing is told of the other
        ((0.4, 0.5, None), (0.6, 0.7, []), ""),
    ],
)
def test_a_file_beats_another_only_beyond_noise(one: Any, other: Any, how: str) -> None:
    first, second = judged("one", *one), judged("other", *other)
    assert beats(first, second) == how
    assert not (how and beats(second, first))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 40])
def test_many_that_beat_a_file_are_one_sentence(count: int) -> None:
    """All are told, by name or by number."""
    names = [f"file{i}.onnx" for i in range(count)]
    text = beaten(names, "as good and faster")
    named = [name for name in names if name in text]
    rest = re.search(r"(\d+) more", text)
    assert len(named) + (int(rest[1]) if rest else 0) == count
    assert len(named) == min(count, 3)
    assert text.endswith("is as good and faster." if count == 1 else "are as good and faster.")


def test_the_command_says_which_files_are_worth_shipping(tmp_path: Path) -> None:
    """A run's answer, the uncompressed file, and one whose outputs say nothing."""
    import onnx
    from onnx import numpy_helper

    study = {**STUDY, "budget": ["macs<=0.9x"], "recovery": {"epochs": 0}, "space": "prune"}
    study["search"] = {**STUDY["search"], "trials": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    call(tmp_path, "search tiny.yaml --out run --json")
    whole = tmp_path / "run" / "models" / "baseline.onnx"
    model = onnx.load(whole)
    last = max(i for i, w in enumerate(model.graph.initializer) if len(w.dims) == 2)
    weights = numpy_helper.to_array(model.graph.initializer[last])
    silent = numpy_helper.from_array(0 * weights, model.graph.initializer[last].name)
    model.graph.initializer[last].CopyFrom(silent)
    onnx.save(model, tmp_path / "silent.onnx")
    strict = {**study, "budget": ["size<=0.9x", "params<=0.1x"], "max_accuracy_drop": 5.0}
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(strict))
    asked = f"judge {whole} silent.onnx run/models/best.onnx --study strict.yaml"
    found = json.loads(call(tmp_path, f"{asked} --json").stdout)
    same, silent_row, best = found["files"]
    assert same["accuracy_difference"] == 0
    assert not same["worth_shipping"]
    assert any("file size is 11% over the limit" in text for text in same["reasons"])
    assert silent_row["accuracy"] < 0.3
    assert silent_row["beaten_by"]["uncompressed"] in ("better and as fast", "better and faster")
    assert any("more than the 5.00 points allowed" in text for text in silent_row["reasons"])
    share = np.bincount(digits().val.targets).max() / len(digits().val.targets)
    alike = f"It is not clearly better than to say one class of every sample ({share:.1%})."
    assert alike in silent_row["reasons"]
    assert alike not in [*same["reasons"], *best["reasons"]]
    assert best["worth_shipping"] == (best["reasons"] == [])
    assert best["size_bytes"] < same["size_bytes"]
    number = json.loads(call(tmp_path, "front run --json").stdout)["best"]
    trials = map(json.loads, (tmp_path / "run" / "trials.jsonl").read_text().splitlines())
    layers = next(t["policy"]["layers"] for t in trials if t.get("number") == number)
    assert any(layer.get("prune_ratio") for layer in layers.values())
    again = f"`front` tells val of trial {number} after the search's quick reconstruction"
    assert [any(again in note for note in row["notes"]) for row in found["files"]] == [0, 0, 1]
    memory = found["baseline"].get("peak_memory_bytes")
    assert (memory is not None) == ("peak_memory_bytes" in best)  # where the system tells it
    table = call(tmp_path, f"judge {whole} silent.onnx --study strict.yaml").stdout
    shown = next(line for line in table.splitlines() if line.startswith("│ silent.onnx"))
    low, high = silent_row["accuracy_low"], silent_row["accuracy_high"]
    assert f"│ {100 * low:+.2f} to {100 * high:+.2f} points │" in " ".join(shown.split())
    (tmp_path / "text.onnx").write_text("no graph")
    shown = call(tmp_path, asked.replace("silent.onnx", "silent.onnx text.onnx")).stdout
    assert "text.onnx is not: " in shown  # and the others are judged all the same
    assert "worth shipping" in shown
    assert "silent.onnx is not: It loses" in shown
