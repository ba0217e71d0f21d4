"""A whole study whose files are timed on a device that ``ssh`` reaches, and that goes away once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from devices import LoopbackDevice, loopback_device
from tiny_study import FEW, call, started, study_of, trials_in, until

from autocompress.errors import InputError
from autocompress.run import factories
from autocompress.run.factories import from_elsewhere, may_reach

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackDevice]:
    with loopback_device(tmp_path / "ssh") as found:
        monkeypatch.setenv("AUTOCOMPRESS_SSH", found.ssh)
        yield found


@pytest.mark.slow
def test_a_study_waits_for_its_device_and_loses_nothing(
    board: LoopbackDevice, tmp_path: Path
) -> None:
    bulk = {"batch": 8, "threads": 2}
    target = {"device": board.url, "python": sys.executable, "throughput": bulk}
    limits = ["latency<=3x", "latency_p99<=99x", "throughput>=0.1x", "latency_worst<=9"]
    names = ["latency_p99_ms", "sample_ms", "latency_worst"]
    if sys.platform == "linux":  # other systems do not tell a process its peak
        limits, names = [*limits, "memory<=9x"], [*names, "peak_memory_bytes"]
    here = [{"runtime": "onnxruntime"}]  # this machine beside the board
    study = study_of(4, target=target, also_on=here, space=FEW, budget=limits)
    run = tmp_path / "runs" / "tiny"
    process = started(tmp_path, study)
    assert until(lambda: trials_in(run) >= 2 or process.poll() is not None)
    board.stop()
    log = tmp_path / "log"
    assert until(lambda: "waiting for the device" in log.read_text()), log.read_text()
    before = trials_in(run)
    assert process.poll() is None
    board.start()
    assert process.wait(600) == 0, log.read_text()

    assert "is there again" in log.read_text()
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert not [t["reason"] for t in trials if t["state"] == "FAILED"]
    assert len([t for t in trials if t["phase"]["kind"] == "search"]) >= 4
    assert len(trials) > before
    for trial in trials:
        if trial["state"] == "COMPLETE":
            told = trial["measurement"]["context"]
            assert told["target"]["device"] == board.url
            assert told["timing"]["facts"]["machine"]["name"]
            for name in names:
                assert trial["measurement"]["values"][name] > 0
                assert name in trial["violations"]
            assert trial["measurement"]["values"]["latency_2_ms"] > 0
            assert [one["device"] for one in told["also_on"]] == ["cpu"]
    recipe = yaml.safe_load((run / "recipes" / "best.yaml").read_text())
    assert recipe["target"]["device"] == board.url
    assert recipe["target"]["machine"]["cpu"]
    assert board.url in (run / "report.html").read_text()

    shown = json.loads(call(tmp_path, f"front {run} --by latency_2 --json").stdout)
    by_number = {t["number"]: t for t in shown["trials"]}
    members = [by_number[number] for number in shown["front"]]
    kept = [(t["latency_2_ms"], t["accuracy"]) for t in members]
    assert kept == sorted(kept)
    assert "did not measure" in call(tmp_path, f"front {run} --by energy", check=2).stderr

    again = call(tmp_path, f"front {run} --target onnxruntime --json")
    there = json.loads(again.stdout)
    assert there["baseline"]["latency_ms"] > 0
    assert "latency_worst" not in " ".join(there["budget"])
    assert len(there["budget"]) == len(limits) - 1
    assert "only this is known there" in again.stderr

    found = json.loads(call(tmp_path, f"verify {run}/recipes/best.yaml --json", check=None).stdout)
    assert found["latency_ms"] > 0
    assert min(found[name] for name in names) > 0
    there_too = f"--target {board.url} --python {sys.executable} --json"
    pair = call(
        tmp_path, f"bench {run}/models/best.onnx --vs {run}/models/baseline.onnx {there_too}"
    )
    assert json.loads(pair.stdout)["ratio"] > 0
    board.stop()  # to make the file again nothing need be timed
    call(tmp_path, f"apply {run}/recipes/best.yaml -o again.onnx")
    failed = call(tmp_path, f"verify {run}/recipes/best.yaml", check=None)
    assert failed.returncode == 2
    assert "cannot be reached" in failed.stderr + failed.stdout


def test_a_study_that_loses_its_device_ends_with_what_it_has(
    board: LoopbackDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DEVICE_WAIT_S", "1")
    target = {"device": board.url, "python": sys.executable}
    process = started(tmp_path, study_of(30, target=target, space=FEW, budget=["latency<=3x"]))
    run = tmp_path / "runs" / "tiny"
    assert until(lambda: trials_in(run) >= 2 or process.poll() is not None)
    board.stop()
    process.wait(600)
    log = (tmp_path / "log").read_text()
    assert "The device was lost" in log, log
    kept = (run / "trials.jsonl").read_text().splitlines()
    assert not [t for t in map(json.loads, kept) if t["state"] == "FAILED"]
    assert (run / "report.html").is_file()
    board.start()
    found = json.loads(call(tmp_path, "search tiny.yaml --resume --trials 4 --json").stdout)
    assert (run / "trials.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert found["best"] is not None


def test_a_strangers_recipe_connects_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factories, "cache_folder", lambda: tmp_path)
    with from_elsewhere("recipe r.yaml"), pytest.raises(InputError, match="--trust"):
        may_reach("ssh://host", "python3")
    with from_elsewhere("recipe r.yaml", trust=True):
        may_reach("ssh://host", "python3")
    with from_elsewhere("run r", named=("ssh://host",)):
        may_reach("ssh://host", "python3")
    may_reach("ssh://host", "python3")  # in a study of one's own
    with from_elsewhere("recipe r.yaml"):
        may_reach("ssh://host", "python3")
        with pytest.raises(InputError, match="--trust"):
            may_reach("ssh://host", "/tmp/python")
