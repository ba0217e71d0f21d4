"""Cascades whose first stages are the beginnings of a network, beside the network itself."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from finished_run import finished_run, rewritten, with_costs
from rich.console import Console
from sklearn.linear_model import Ridge

from autocompress.cascade.chain import Chain, Member
from autocompress.cascade.choose import Asked, Choice, halves, told
from autocompress.cascade.heads import RIDGE
from autocompress.cascade.manifest import Manifest
from autocompress.cascade.sequence import SequenceTimes
from autocompress.commands.cascading import show_cascade
from autocompress.errors import ExportError, InputError
from autocompress.exporters.onnx_parts import Cut, Parts
from autocompress.report.tables import what
from autocompress.run import cascade_exits, cascading, recipes, replay
from autocompress.run.assembly import assemble
from autocompress.run.cascade_exits import EXITS, cuts_of, logits_of, spread, with_exits
from autocompress.run.cascade_members import RunMembers
from autocompress.run.study import read_study
from autocompress.runtime import Cascade
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView
from autocompress.workloads.data import digits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("exits") / "run")


@pytest.fixture(scope="module")
def known(run: RunFolder) -> RunMembers:
    place = run.root / "cascade"
    return RunMembers(run, RunView.load(run), assemble(read_study(run.read_study()), place), place)


@pytest.fixture(scope="module")
def members(known: RunMembers) -> list[Member]:
    first, _ = halves(len(known.parts.data.val))
    return with_exits(known, known.judged(first), first)


def exits_first(members: list[Member]) -> Chain:
    """Two exits of trial 1, and the rest of it."""
    own = [i for i, m in enumerate(members) if m.trial == 1]
    exits = [i for i in own if members[i].exit is not None]
    (whole,) = set(own) - set(exits)
    asked = (exits[1], exits[-1])
    levels = tuple(float(np.median(members[i].sure["margin"])) for i in asked)
    return Chain((*asked, whole), "margin", levels)


@pytest.fixture(scope="module")
def made(run: RunFolder, members: list[Member]) -> dict[str, Any]:
    """As the command makes it, but for the choice."""

    def taken(found: list[Member], baseline: Any, first: Any, second: Any, _: Asked) -> Choice:
        on_second = [m.on(second) for m in found]
        return told(exits_first(found), on_second, baseline[second])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascading, "choose", taken)
        return cascading.cascade(str(run.root), Asked(mean_ms=0.6))


def test_exits_are_members_and_their_network_goes_on_from_them(members: list[Member]) -> None:
    assert members[-1].trial is None
    assert members[-1].exit is None
    for number in (1, None):
        *exits, whole = [m for m in members if m.trial == number]
        assert whole.exit is None
        assert 2 <= len(exits) <= EXITS
        shares = [m.share for m in exits]
        assert shares == sorted(shares)
        assert set(whole.after) == {m.label for m in exits}
        assert all(set(m.after) == {e.label for e in exits[:i]} for i, m in enumerate(exits))
        assert all(0 < ms < whole.latency_ms * 2 for ms in whole.after.values())


def test_exits_of_a_module_that_runs_at_several_places_are_told_apart(
    known: RunMembers, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What remains after each of them is told by its name."""

    def shared(file: Path) -> list[Cut]:
        return [replace(cut, module="block") for cut in cuts_of(file)]

    monkeypatch.setattr(cascade_exits, "cuts_of", shared)
    first, _ = halves(len(known.parts.data.val))
    found = with_exits(known, known.judged(first), first)
    assert len({m.label for m in found}) == len(found)
    assert [list(m.after.values()) for m in found] == [list(m.after.values()) for m in members]


def test_an_exit_is_a_ridge_regression_to_what_its_network_answers(
    known: RunMembers, members: list[Member]
) -> None:
    """All of it by scikit-learn, on features that the uncompressed file gives."""
    exits = [m for m in members if m.trial is None and m.exit is not None]
    train, test = known.parts.data.train, known.parts.data.test
    model = Parts(onnx.load(str(known.file(None)))).probes([str(m.exit) for m in exits])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name
    wanted, *features = session.run(None, {name: train.inputs().numpy()})
    _, *unseen = session.run(None, {name: test.inputs().numpy()})
    assert len(train) <= 4096
    for exit_, seen, rest in zip(exits, features, unseen, strict=True):
        alpha = RIDGE * len(seen) * seen.astype(float).var(axis=0).mean()
        ridge = Ridge(alpha=alpha).fit(seen.astype(float), wanted)
        found = logits_of(known, exit_, "test")
        np.testing.assert_allclose(found, ridge.predict(rest), rtol=1e-3, atol=1e-3)


def test_it_answers_as_its_members_and_the_whole_network_do(
    known: RunMembers, members: list[Member], made: dict[str, Any]
) -> None:
    folder, chain = Path(made["manifest"]).parent, exits_first(members)
    manifest = Manifest.load(folder)
    assert [stage.takes for stage in manifest.stages] == ["inputs", "features", "features"]
    targets = known.targets("test")
    asked = [m.answering(logits_of(known, m, "test"), targets) for m in members]
    stages = _answered(chain, asked)
    logits = [logits_of(known, members[i], "test") for i in chain.members]
    wanted = np.stack(logits)[stages, np.arange(len(stages))]
    runner = Cascade(folder)
    feed = {runner.get_inputs()[0].name: digits().test.inputs().numpy()}
    assert [o.name for o in runner.get_outputs()] == ["output"]
    (outputs,), places = runner.answer(feed)
    assert set(places) == {0, 1, 2}
    assert (places == stages).mean() > 0.99  # the rest is within rounding of a threshold
    same = places == stages
    np.testing.assert_allclose(outputs[same], wanted[same], rtol=1e-4, atol=1e-4)
    one = onnxruntime.InferenceSession(made["one_file"])
    assert [o.name for o in one.get_outputs()] == ["output"]
    for i in range(60):
        single = {name: array[i : i + 1] for name, array in feed.items()}
        np.testing.assert_allclose(one.run(None, single)[0], outputs[i : i + 1], atol=1e-4)
        np.testing.assert_allclose(runner.run(None, single)[0], outputs[i : i + 1], atol=1e-4)


def _answered(chain: Chain, asked: list[Member]) -> np.ndarray:
    """By hand: the first stage whose margin reaches its threshold."""
    margins = [asked[i].sure["margin"] for i in chain.members[:-1]]
    first = [m >= t for m, t in zip(margins, chain.thresholds, strict=True)]
    return np.where(first[0], 0, np.where(first[1], 1, 2))


def test_an_exit_may_be_the_last_stage(
    run: RunFolder, known: RunMembers, members: list[Member], tmp_path: Path
) -> None:
    """Of another network than the first, in which nobody takes what it computed on the way."""

    def taken(found: list[Member], baseline: Any, first: Any, second: Any, _: Asked) -> Choice:
        exits = {n: [i for i, m in enumerate(found) if m.exit and m.trial == n] for n in (1, None)}
        chain = (exits[1][0], exits[None][-1])
        level = float(np.median(found[chain[0]].sure["margin"]))
        return told(
            Chain(chain, "margin", (level,)), [m.on(second) for m in found], baseline[second]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascading, "choose", taken)
        made = cascading.cascade(str(run.root), Asked(mean_ms=0.6), tmp_path / "made")
    path = tmp_path / "recipe.yaml"
    recipes.export(str(run.root), str(made["trial"]), path)
    replay.apply(path, tmp_path / "again", None, None)
    inputs, targets = digits().test.inputs().numpy(), known.targets("test")
    chain = taken(members, targets == targets, *(np.arange(9),) * 2, Asked(mean_ms=0.6)).chain
    asked = [
        members[i].answering(logits_of(known, members[i], "test"), targets) for i in chain.members
    ]
    later = asked[0].sure["margin"] < chain.thresholds[0]
    logits = [logits_of(known, members[i], "test") for i in chain.members]
    wanted = np.where(later[:, None], logits[1], logits[0])
    assert 0 < later.mean() < 1
    for folder in (tmp_path / "made", tmp_path / "again"):
        runner = Cascade(folder)
        assert [o.name for o in runner.get_outputs()] == ["output"]
        (outputs,), places = runner.answer({"input": inputs})
        same = places == later
        assert same.mean() > 0.99  # the rest is within rounding of the threshold
        np.testing.assert_allclose(outputs[same], wanted[same], rtol=1e-3, atol=1e-3)
    assert made["no_one_file"] == ""
    one = onnxruntime.InferenceSession(made["one_file"])
    assert [o.name for o in one.get_outputs()] == ["output"]
    for i in range(20):
        np.testing.assert_allclose(
            one.run(None, {"input": inputs[i : i + 1]})[0], outputs[i : i + 1], atol=1e-3
        )


def test_what_the_parts_cost_is_what_their_network_costs(
    run: RunFolder, members: list[Member], made: dict[str, Any]
) -> None:
    view = RunView.load(run)
    trial = view.by_number[made["trial"]]
    network, found = view.by_number[1].measurement, trial.measurement
    assert network is not None
    assert found is not None
    early, later = (members[i].share for i in exits_first(members).members[:2])
    stages = _answered(exits_first(members), members)
    reached = [(stages >= 1).mean(), (stages >= 2).mean()]
    share = early + reached[0] * (later - early) + reached[1] * (1 - later)
    assert found["macs"] == pytest.approx(share * network["macs"])
    assert found["params"] == network["params"]
    assert found["size_bytes"] == sum(Path(file).stat().st_size for file in made["files"])
    assert what(trial, view).startswith("trial 1 to ")
    assert sum(s["latency_ms"] for s in made["stages"]) < 2 * network["latency_ms"]


def test_its_recipe_makes_the_same_files_again(
    run: RunFolder, made: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    recipes.export(str(run.root), str(made["trial"]), path)
    replay.apply(path, tmp_path / "files", None, None)
    feed = {"input": digits().test.inputs().numpy()}
    (outputs,), places = Cascade(Path(made["manifest"]).parent).answer(feed)
    (found,), same = Cascade(tmp_path / "files").answer(feed)
    np.testing.assert_array_equal(same, places)
    np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-4)
    check = replay.check(path, None, None)
    assert check["accuracy"] == pytest.approx(made["test"]["accuracy"])
    data = yaml.safe_load(path.read_text())
    data["cascade"]["stages"][0]["exit"] = "nowhere"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="early exit at 'nowhere'"):
        replay.apply(path, tmp_path / "none", None, None)


def test_the_uncompressed_model_alone_has_exits(
    run: RunFolder, members: list[Member], tmp_path: Path
) -> None:
    """Of a run that ended before its first trial."""
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.root, copy.root)
    copy.trials.write_text("")
    made = cascading.cascade(str(copy.root), Asked(mean_ms=0.9))
    assert {number for stage in made["stages"] for number in stage["trials"]} == {None}
    assert [t.number for t in RunView.load(copy).trials] == [made["trial"]] == [0]


@pytest.mark.parametrize(("runner", "one_file", "told"), [(3, 2, True), (3, 0.2, False)])
def test_it_says_so_where_a_single_member_is_as_good_and_measured_to_be_as_quick(
    run: RunFolder, tmp_path: Path, runner: float, one_file: float, told: bool
) -> None:
    """Where the runner takes longer than what it asks; latencies as no machine has a say in."""
    times = SequenceTimes(np.tile([1.0, runner, one_file], (50, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascading, "timed", lambda *_: times)
        found = cascading.cascade(str(run.root), Asked(mean_ms=0.6), tmp_path / "made")
    alone, console = found["alone"]["as_good"], Console(width=500, record=True, file=io.StringIO())
    show_cascade(found, console)
    said = f"It is not quicker than {alone['label']} alone"
    assert 0.2 < alone["latency_ms"] <= 1
    assert (said in console.export_text()) == told
    assert bool(found["no_gain"]) == told
    if told:
        assert "3.000 ms in the runner and 2.000 ms as one file" in found["no_gain"]
    trial = RunView.load(run).by_number[found["trial"]]
    assert trial.measurement is not None
    assert trial.measurement.context["cascade"]["no_gain"] == found["no_gain"]


def test_its_tail_is_told_where_the_run_tells_tails(run: RunFolder, tmp_path: Path) -> None:
    """Longer by what the few inputs take that are handed on, though the mean is shorter."""
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.root, copy.root)
    rewritten(copy, with_costs("latency_p99_ms"))
    runner = np.where(np.arange(200) % 50 == 0, 3.0, 0.5)
    times = SequenceTimes(np.stack([np.full(200, 2.0), runner], axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascading, "timed", lambda *_: times)
        made = cascading.cascade(str(copy.root), Asked(mean_ms=0.6))
    found = RunView.load(copy).by_number[made["trial"]].measurement
    assert found is not None
    assert found["latency_ms"] == pytest.approx((0.98 * 0.5 + 0.02 * 3) / 2)
    assert found["latency_p99_ms"] == pytest.approx(3 / 2)


def test_a_network_without_a_place_to_cut_has_no_exits(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3]) for n in "xy"
    ]
    graph = onnx.helper.make_graph([node], "one", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "one.onnx"))
    with pytest.raises(ExportError, match="no single tensor"):
        cuts_of(tmp_path / "one.onnx")


def test_exits_are_spread_over_the_network(known: RunMembers) -> None:
    cuts = cuts_of(known.file(None))
    two = spread(cuts, 2)
    assert len(two) == 2
    for cut, wanted in zip(two, (1 / 3, 2 / 3), strict=True):
        assert abs(cut.share - wanted) == min(abs(one.share - wanted) for one in cuts)
