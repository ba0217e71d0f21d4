"""Advice from measurements: what gains nothing is left out, and what is asked decides the rest."""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import STUDY, call

import autocompress as ac
from autocompress.errors import InputError
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.ways import BITS, BLOCKS, CHANNELS, LEVELS, RANK, ZEROS
from autocompress.run import feasibility
from autocompress.run.advice import GAIN, Tried, choose
from autocompress.run.assembly import assemble
from autocompress.run.feasibility import settle_space
from autocompress.run.study import read_study


def tried(**ratios: float) -> list[Tried]:
    """Ways with their latency ratio; size and multiply-adds alike."""
    words = {"bits": BITS, "channels": CHANNELS, "rank": RANK, "zeros": ZEROS, "blocks": BLOCKS}
    words["both"] = "half of the channels, in 8 bits"
    return [
        Tried(words[k], r, r - 0.01, r + 0.01, size_ratio=r / 2, macs_ratio=r, divergence=0.1)
        for k, r in ratios.items()
    ]


def ways_of(found: dict[str, Any]) -> set[str]:
    (rule,) = found["space"]["rules"]
    return {way for way, fields in LEVELS.items() if set(fields) <= set(rule)}


ALL = {"channels": 0.6, "rank": 0.8, "zeros": 1.0, "both": 0.3, "blocks": 0.7}


@pytest.mark.parametrize(
    ("bits", "asked", "ways"),
    [
        (0.45, 0.5, {BITS, CHANNELS}),  # 8 bits alone meet it
        (0.7, 0.5, {BITS, CHANNELS, RANK}),  # half the width in 8 bits goes far enough
        (0.45, 0.25, {BITS, CHANNELS, RANK, BLOCKS}),
        (1.05, 0.5, {CHANNELS, RANK}),  # this processor gains nothing by bits
    ],
)
def test_bits_first_and_more_as_more_is_asked(bits: float, asked: float, ways: set[str]) -> None:
    found = choose(tried(bits=bits, **ALL), "latency_ms", asked)
    assert ways_of(found) == ways
    told = " ".join([*found["reasons"], *found["left_out"]])
    for way in (BITS, CHANNELS, RANK, ZEROS, BLOCKS):
        assert way in told
    assert found["space"].get("distill", False) == ([False, True] if asked < 0.5 else False)
    SpaceConfig.read(found["space"], where="the test")


def test_blocks_are_asked_for_where_width_and_bits_do_not_go_far_enough() -> None:
    found = choose(tried(bits=0.7, **{**ALL, "both": 0.6}), "latency_ms", 0.5)
    assert BLOCKS in ways_of(found)


def test_a_way_that_another_beats_says_why_it_is_offered() -> None:
    """The other one goes further and errs less; of two that each win once, neither is beaten."""
    ways = {one.way: one for one in tried(bits=0.5, channels=0.6, rank=0.7)}
    for errs, beaten in ((0.2, True), (0.05, False)):
        ways[RANK] = replace(ways[RANK], divergence=errs)
        reasons = choose([*ways.values()], "latency_ms", 0.3)["reasons"]
        (told,) = (text for text in reasons if text.startswith(RANK))
        assert ("go further and err less" in told) == beaten
        assert not any("err less" in text for text in reasons if text != told)


def test_what_could_not_be_tried_is_left_out_with_its_reason() -> None:
    ways = [*tried(bits=0.5), Tried(CHANNELS, why_not="no channel of this model can go")]
    found = choose(ways, "latency_ms", 0.4)
    assert ways_of(found) == {BITS}
    assert found["left_out"] == [
        "half of the channels: not to be had here (no channel of this model can go)"
    ]


def test_where_nothing_gains_only_what_can_be_done_is_offered() -> None:
    nothing = tried(bits=1.1, rank=1.0, zeros=1.2)
    assert ways_of(choose([*nothing, *tried(channels=1.0)], "latency_ms", 0.5)) == {CHANNELS}
    none_can_go = Tried(CHANNELS, why_not="no channel of this model can go")
    found = choose([*nothing, none_can_go], "latency_ms", 0.5)
    assert ways_of(found) == {BITS, RANK, ZEROS}
    assert "offered all the same: 8 bits" in found["reasons"][0]
    with pytest.raises(InputError, match=r"half of the channels: no channel .* can go; 8 bits: no"):
        choose([none_can_go, Tried(BITS, why_not="no")], "latency_ms", 0.5)


def test_a_budget_of_bytes_is_judged_by_bytes() -> None:
    found = choose(tried(bits=1.2, channels=1.1), "size_bytes", 0.7)
    assert BITS in ways_of(found)
    assert "file size" in found["reasons"][0]


def test_a_model_without_channels_to_spare_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only layer gives the outputs: nothing of it can go, and 8 bits can be had."""
    (tmp_path / "one_layer.py").write_text(
        "import torch\n"
        "def make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = {"factory": "autocompress.workloads.data:digits"}
    study = {"name": "one", "model": {"factory": "one_layer:make"}, "data": data, "space": "auto"}
    parts = assemble(read_study({**study, "budget": ["params<=0.9x"]}), tmp_path / "models")
    settle_space(parts)
    assert parts.advice is not None
    why_not = {t["way"]: t["why_not"] for t in parts.advice["tried"]}
    assert not why_not[BITS]
    assert "cannot be pruned" in why_not[CHANNELS]
    assert "'prune_ratio'" in why_not["half of the channels, in 8 bits"]
    assert not {c.kind for c in parts.space.choices} & {"prune"}


NAMELESS = {key: value for key, value in STUDY.items() if key != "space"}


def test_a_study_that_names_no_space_is_advised(tmp_path: Path) -> None:
    study = read_study({**NAMELESS, "baseline": None})
    assert study.space == "auto"
    assert inspect.signature(ac.search).parameters["space"].default == study.space
    parts = assemble(study, tmp_path / "models")
    assert parts.advice is None, "only a search measures for its space"
    settle_space(parts)
    assert parts.advice is not None
    assert parts.study.space_config().name == "advised"
    assert {c.kind for c in parts.space.choices} == {c.kind for c in parts.bind().choices}
    assert {path.stem for path in (tmp_path / "models").glob("*.onnx")} == {"baseline"}


def test_a_study_without_time_offers_what_it_could_not_try(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = assemble(read_study({**NAMELESS, "baseline": None, "timeout_s": 1}), tmp_path)
    with caplog.at_level(logging.INFO, "autocompress"):
        settle_space(parts)
    assert parts.advice is not None
    assert [t["latency_ratio"] for t in parts.advice["tried"]] == [None] * len(LEVELS | {"both": 0})
    assert ways_of(parts.advice) == {BITS, CHANNELS, RANK}
    assert "6 of 6 ways were not tried for lack of time" in caplog.text
    assert f"{BITS}: not tried, for lack of time; offered all the same" in caplog.text


def test_nothing_is_measured_for_a_budget_out_of_reach_or_a_shared_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(parts: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(feasibility, "advice_for", measured)
    study = {**NAMELESS, "baseline": None, "budget": ["macs<=0.00001x"]}
    parts = assemble(read_study(study), tmp_path)
    settle_space(parts)
    assert feasibility.can_be_met(parts, parts.progress, timed=False).reason
    storage = {"tracking": {"storage": "sqlite:///:memory:"}}
    parts = assemble(read_study({**NAMELESS, "baseline": None, **storage}), tmp_path)
    settle_space(parts)
    assert parts.study.space == "joint"


@pytest.mark.timeout(600)
def test_the_command_offers_what_was_measured_to_gain(tmp_path: Path) -> None:
    study = {**STUDY, "budget": ["latency<=0.3x"], "recovery": {"epochs": 0}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    found = json.loads(call(tmp_path, "advise tiny.yaml -o space.yaml --json").stdout)
    assert (found["metric"], found["asked"]) == ("latency_ms", 0.3)
    measured = {t["way"]: t for t in found["tried"]}
    gaining = {w for w in LEVELS if not measured[w]["why_not"] and measured[w]["high"] < GAIN}
    assert ways_of(found) == (gaining or {CHANNELS})
    assert measured[BITS]["size_ratio"] < 0.5
    assert measured[CHANNELS]["macs_ratio"] < 0.7
    assert measured[ZEROS]["macs_ratio"] == 1.0
    written = SpaceConfig.load(tmp_path / "space.yaml")
    assert written == SpaceConfig.read(found["space"], where="the test")

    study |= {"space": "auto", "budget": ["macs<=0.9x"], "search": {"trials": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study))
    call(tmp_path, "search tiny.yaml --out run --json")
    resolved = yaml.safe_load((tmp_path / "run" / "study.yaml").read_text())
    assert resolved["space"]["name"] == "advised"
    call(tmp_path, "search tiny.yaml --out run --resume --trials 3 --json")
    again = yaml.safe_load((tmp_path / "run" / "study.yaml").read_text())
    assert again["space"] == resolved["space"], "a run goes on in the space that it began with"
