"""The journal loses nothing that had finished, whatever happens to its writer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import AutocompressError, InputError
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase, Trial, TrialState
from autocompress.track.folder import RunFolder, write_atomically
from autocompress.track.journal import Journal, read_entries, read_trials
from autocompress.track.lock import writer_of

ratios = st.sampled_from([0.0, 0.25, 0.5])
policies = st.builds(
    lambda r, b: Policy({"conv": LayerPolicy(prune_ratio=r, weight_bits=b)}),
    ratios,
    st.sampled_from([8, 32]),
)
numbers = st.floats(0, 1e9, allow_nan=False)
measurements = st.builds(
    lambda a, ms: Measurement({"accuracy": a, "latency_ms": ms}, {"accuracy": 0.01}, {"n": 3}),
    st.floats(0, 1),
    numbers,
)
trials = st.builds(
    Trial,
    number=st.just(0),
    policy=policies,
    phase=st.sampled_from([Phase(), Phase("recover", 2.0, 1), Phase("verify")]),
    state=st.sampled_from(list(TrialState)),
    origin=st.text(max_size=10),
    measurement=st.none() | measurements,
    violations=st.dictionaries(st.sampled_from(["latency_ms", "macs"]), numbers),
    reason=st.text(max_size=60),
    seed=st.integers(0, 2**31),
    seconds=numbers,
    parent=st.none() | st.integers(0, 9),
)


def numbered(found: list[Trial]) -> list[Trial]:
    return [Trial.from_dict({**t.as_dict(), "number": i}) for i, t in enumerate(found)]


def trial(number: int, **more: object) -> Trial:
    measured = Measurement({"accuracy": 0.9, "latency_ms": 1.0})
    return Trial(number, Policy(), measurement=measured, **more)  # type: ignore[arg-type]  # options of any type


@settings(max_examples=30, deadline=None)
@given(st.lists(trials, max_size=6).map(numbered), st.integers(0, 400), st.data())
def test_a_file_cut_anywhere_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, made: list[Trial], back: int, data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    with Journal(run) as journal:
        for t in made:
            journal.record(t)
    file = run / "trials.jsonl"
    whole = file.read_bytes()
    assert [t.as_dict() for t in read_trials(run)] == [t.as_dict() for t in made]

    cut = whole[: max(0, len(whole) - back)]
    file.write_bytes(cut)
    survivors = cut.count(b"\n")
    assert len(read_trials(run)) == survivors, "reading without the lock ignores a torn line"
    with Journal(run) as journal:
        assert [t.as_dict() for t in journal.load()] == [t.as_dict() for t in made[:survivors]]
        journal.record(trial(len(journal)))
    assert len(read_trials(run)) == survivors + 1
    assert all(json.loads(line) for line in file.read_bytes().splitlines())


WRITER = textwrap.dedent(
    """
    import sys
    from autocompress.policy.policy import LayerPolicy, Policy
    from autocompress.results.metric import Measurement
    from autocompress.results.trial import Trial
    from autocompress.track.journal import Journal

    layers = {f"layer{i}.conv": LayerPolicy(prune_ratio=i / 64) for i in range(60)}
    with Journal(sys.argv[1]) as journal:
        while True:
            number = len(journal)
            journal.record(Trial(number, Policy(layers), reason="x" * 3000,
                                 measurement=Measurement({"accuracy": 0.5})))
            print(number, flush=True)
    """
)


def test_a_killed_writer_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    rng = random.Random(0)
    finished = -1
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            finished = max(finished, int(process.stdout.readline()))
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            for line in process.stdout.read().splitlines(keepends=True):
                if line.endswith("\n"):
                    finished = max(finished, int(line))
        with Journal(tmp_path) as journal:  # the dead writer's lock is gone
            found = [t.number for t in journal.load()]
            assert found == list(range(len(found)))
            assert len(found) >= finished + 1
            assert all(len(t.policy.layers) == 59 for t in journal.load())


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    code = (
        "import sys; from autocompress.track.journal import Journal; j = Journal(sys.argv[1]);"
        "print('held', flush=True); sys.stdin.readline(); j.close(); print('freed', flush=True);"
        "sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=str(other.pid)):
            Journal(tmp_path)
        assert read_trials(tmp_path) == []
        assert writer_of(RunFolder(tmp_path)) == str(other.pid)
        other.stdin.write("\n")
        other.stdin.flush()
        other.stdout.readline()
        Journal(tmp_path).close()
        other.stdin.close()


def test_one_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    assert writer_of(RunFolder(tmp_path)) is None
    with Journal(tmp_path):
        assert writer_of(RunFolder(tmp_path)) == str(os.getpid())
        with pytest.raises(InputError, match=str(os.getpid())):
            Journal(tmp_path)
    Journal(tmp_path).close()
    assert writer_of(RunFolder(tmp_path)) is None


def test_a_trial_is_recorded_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record(trial(3))
        with pytest.raises(AutocompressError, match=r"trial 3\. Number new trials from 4"):
            journal.record(trial(3))
        assert len(journal) == 1
    with pytest.raises(AutocompressError, match="closed"):
        journal.record(trial(4))


def test_a_disk_that_refuses_leaves_no_part_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as journal:
        journal.record(trial(0))
        real, calls = os.write, []

        def full(handle: int, data: bytes) -> int:
            calls.append(handle)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
            return real(handle, data[:20])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            journal.record(trial(1))
        monkeypatch.undo()
        journal.record(trial(1))
    assert [t.number for t in read_trials(tmp_path)] == [0, 1]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.record(trial(0))
    with (tmp_path / "trials.jsonl").open("a") as stream:
        stream.write('{"number": 1}\n')
    with pytest.raises(InputError, match="line 2"):
        Journal(tmp_path)
    with pytest.raises(InputError, match="line 2"):  # the failed open freed its lock
        Journal(tmp_path)


def test_what_a_newer_version_wrote_is_not_called_damaged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.write_study({"name": "x", "ray_address": None})
    with Journal(folder) as journal:
        journal.record(trial(0))
    line = json.loads(folder.trials.read_text())
    newer = {**line, "number": 1, "format": 2, "invented": {}}
    with folder.trials.open("a") as stream:
        stream.write(json.dumps(newer) + "\n")
    with pytest.raises(InputError, match=r"line 2, was written by a newer version") as told:
        Journal(folder)
    assert "Remove" not in str(told.value)
    identity = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**identity, "format": 2}))
    with pytest.raises(InputError, match=r"was written by a newer version") as told:
        folder.read_study()
    assert "Delete" not in str(told.value)


def test_elapsed_time_leaves_pauses_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Journal(tmp_path) as journal:
        clock[0] += 7
        journal.record(trial(0))
    clock[0] += 5000
    with Journal(tmp_path) as journal:
        clock[0] += 3
        journal.record(trial(1))
    assert [e.elapsed_s for e in read_entries(tmp_path)] == [7, 10]


def test_context_may_hold_what_json_has_not(tmp_path: Path) -> None:
    measured = Measurement({"accuracy": 0.5}, context={"path": Path("a"), "p": float("nan")})
    with Journal(tmp_path) as journal:
        journal.record(Trial(0, Policy(), measurement=measured))
    (found,) = read_trials(tmp_path)
    assert found.measurement is not None
    assert found.measurement.context == {"path": "a", "p": None}


def test_a_run_is_found_or_the_nearest_is_named(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "resnet20").write_study({"name": "a"})
    assert RunFolder.open("resnet20", root=tmp_path).read_study() == {"name": "a"}
    with pytest.raises(InputError, match="did you mean 'resnet20'"):
        RunFolder.open("resnet2O", root=tmp_path)
    with pytest.raises(InputError, match="did you mean 'resnet20'"):
        RunFolder.open(tmp_path / "resnet56")
    with pytest.raises(InputError, match=r"in it there is .*resnet20\.$"):
        RunFolder.open(tmp_path)
    with pytest.raises(InputError, match=r"`autocompress search` makes one\.$"):
        RunFolder.open(tmp_path / "resnet20" / "models" / "none")
    with pytest.raises(InputError, match="--resume"):
        RunFolder.create(tmp_path / "resnet20")
    RunFolder.create(tmp_path / "resnet20", resume=True)


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_front({"best": 1})

    def refuse(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="power cut"):
        write_atomically(folder.front, "half a fi")
    monkeypatch.undo()
    assert folder.read_front() == {"best": 1}
    assert sorted(p.name for p in folder.root.iterdir()) == ["front.json", "models", "recipes"]
    baseline = Measurement({"accuracy": 0.9}, {"accuracy": 0.01}, {"split": "test"})
    folder.write_baseline(baseline, "test")
    assert folder.read_baseline("test") == baseline
    assert folder.read_baseline() is None
