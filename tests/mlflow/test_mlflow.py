"""MLflow shows what the journal says: with a real SQLite store and a real server."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow_runs import content, logged_live, onnx_file, runs_of

from autocompress.errors import AutocompressError, InputError
from autocompress.mlflow.database import check_database
from autocompress.mlflow.server import Server, links_of
from autocompress.mlflow.sink import MlflowSink
from autocompress.mlflow.store import Recorder, Store, sync
from autocompress.report.tables import write_summary
from autocompress.results.metric import Measurement
from autocompress.run.tracking import track
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal, read_entries, read_trials
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]


def test_a_store_rebuilt_from_the_journal_holds_the_same_runs(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "source" / "resnet20", 12)
    live = RunFolder.create(tmp_path / "live" / "resnet20")
    view, said = logged_live(folder, live)
    assert said == []
    store = Store.of(live, None)
    before = content(store)
    assert len(before) == len(view.trials)

    sync(live)
    assert content(store) == before, "a sync after a clean end changes nothing"

    rebuilt = f"sqlite:///{tmp_path / 'rebuilt.db'}"
    sync(live, uri=rebuilt)
    # run ids differ; what people see does not
    assert content(Store(rebuilt)) == before
    for each in (store, Store(rebuilt)):
        (parent,) = runs_of(each, query="tags.`autocompress.kind` = 'study'")
        assert parent.data.metrics["hypervolume"] == pytest.approx(view.hypervolume)


def test_tags_find_feasible_and_front_trials_and_the_parent_shows_the_study(
    tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "resnet20", 20)
    view = RunView.load(folder)
    recorder = sync(folder, best_model=onnx_file(tmp_path / "best.onnx"))
    store, client = Store.of(folder, None), recorder.client

    def numbers(query: str) -> set[int]:
        runs = runs_of(store, query=query)
        return {int(r.data.tags["autocompress.trial"].rpartition("/")[2]) for r in runs}

    assert numbers("tags.front = 'true'") == {t.number for t in view.front}
    assert numbers("tags.feasible = 'true' and tags.state = 'COMPLETE'") == {
        t.number for t in view.trials if t.feasible
    }
    # parameters compare as text, metrics as numbers
    assert numbers("metrics.latency_ratio < 0.5 and tags.phase = 'search'") == {
        t.number
        for t in view.trials
        if t.phase.kind == "search" and (r := view.ratio(t)) is not None and r < 0.5
    }
    history = client.get_metric_history(recorder.parent, "hypervolume")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == pytest.approx(
        [p.hypervolume for p in view.history]
    )
    for trial in view.front:
        where = client.download_artifacts(recorder.children[trial.number], "policy.json")
        assert json.loads(Path(where).read_text()) == trial.policy.as_dict()
    names = {a.path for a in client.list_artifacts(recorder.parent, "front")}
    assert {"front/front.csv", "front/front.json"} <= names
    table = json.loads(
        Path(client.download_artifacts(recorder.parent, "front/front.json")).read_text()
    )
    column = table["columns"].index("number")
    assert [row[column] for row in table["data"]] == [t.number for t in view.front]

    import mlflow.onnx

    (version,) = client.search_model_versions("name = 'autocompress-resnet20'")
    assert view.best is not None
    assert version.tags["trial"] == str(view.best.number)
    mlflow.set_tracking_uri(store.uri)
    model = mlflow.onnx.load_model(f"models:/autocompress-resnet20/{version.version}")
    assert model.graph.node[0].op_type == "Relu"
    write_summary(folder, view, onnx_file(folder.models / "best.onnx"))
    sync(folder)
    assert len(client.search_model_versions("name = 'autocompress-resnet20'")) == 1


def test_a_trial_that_was_logged_by_half_is_logged_again(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "resnet20", 6)
    recorder = sync(folder)
    store = Store.of(folder, None)
    before = content(store)
    # what a kill between two calls leaves: a child that was never ended
    client = recorder.client
    client.update_run(recorder.children[2], status="RUNNING")
    client.delete_run(recorder.children[4])
    sync(folder)
    assert content(store) == before


def test_a_store_that_fails_in_the_middle_gets_no_trial_twice(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    folder = make_run(tmp_path / "resnet20", 4)
    baseline = folder.read_baseline()
    assert baseline is not None
    recorder = Recorder(folder, baseline, Store.of(folder, None), "resnet20")
    real, failures = mlflow.MlflowClient.set_terminated, [True, True]

    def flaky(self: Any, *args: Any) -> None:
        if failures:
            failures.pop()
            raise ConnectionError("reset by peer")
        real(self, *args)

    monkeypatch.setattr(mlflow.MlflowClient, "set_terminated", flaky)
    for entry in read_entries(folder):
        while True:
            try:
                recorder.add(entry)
                break
            except ConnectionError:
                continue
    assert not failures
    runs = runs_of(Store.of(folder, None), query="attributes.run_name LIKE 'trial %'")
    assert len(runs) == len(read_trials(folder))
    assert {r.info.status for r in runs} <= {"FINISHED", "FAILED"}


def test_a_dead_server_never_stops_a_study(tmp_path: Path, make_run: MakeRun) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refuses
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        folder = make_run(tmp_path / "source" / "resnet20", 5)
        live = RunFolder.create(tmp_path / "live" / "resnet20")
        view, said = logged_live(folder, live, uri=uri)
    assert len(said) == 1
    assert uri in said[0]
    assert len(read_trials(live)) == len(view.trials)
    sync(live)
    assert len(content(Store.of(live, None))) == len(view.trials)


def test_a_server_that_never_answers_holds_up_no_study(tmp_path: Path, make_run: MakeRun) -> None:
    """It takes connections and says nothing; one that answers is caught up with later."""
    folder = make_run(tmp_path / "source" / "resnet20", 5)
    live = RunFolder.create(tmp_path / "live" / "resnet20")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        view, said = logged_live(folder, live, uri=uri)
        took = time.monotonic() - begin
    # without the bound it would take two requests of five seconds at least
    assert took < 5.0
    assert any("autocompress track" in text and uri in text for text in said)
    assert len(read_trials(live)) == len(view.trials)
    for _ in range(2):
        sync(live, uri=f"sqlite:///{tmp_path / 'later.db'}")
        assert len(content(Store(f"sqlite:///{tmp_path / 'later.db'}"))) == len(view.trials)


def test_track_brings_any_store_up_to_date(
    tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "resnet20", 6)
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    for _ in range(2):
        found = track(str(folder.root), uri, None)
        assert found["trials"] == len(read_trials(folder)) == len(content(Store(uri)))
    with Journal(folder), pytest.raises(InputError, match="shows its trials itself"):
        track(str(folder.root), uri, None)
    with pytest.raises(AutocompressError, match="does not take the run"):
        track(str(folder.root), "http://127.0.0.1:1", None)


def test_a_database_that_is_away_is_said_at_once(tmp_path: Path, make_run: MakeRun) -> None:
    """Without the password of its address."""
    make_run(tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        secret = "5/se#cret"  # SQLAlchemy takes it as it is
        uri = f"postgresql://me:{secret}@127.0.0.1:{free.getsockname()[1]}/mlflow"
        with pytest.raises(AutocompressError, match=r"No database answers at 127\.0\.0\.1") as told:
            track(str(tmp_path / "run"), uri, None)
    assert "cret" not in str(told.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me@/mlflow?host=one.invalid:5432&host=two.invalid:5432",
        "postgresql:///mlflow?host=/run/postgresql",
        "postgresql://me@localhost/mlflow?host=/run/postgresql",
        "mysql://root@localhost/mlflow",
        "mysql+pymysql://root@127.0.0.1:1/mlflow?unix_socket=/run/mysqld.sock",
        "mssql+pyodbc://my_dsn",
        "sqlite:////tmp/mlflow.db",
        "http://127.0.0.1:1",
    ],
)
def test_addresses_that_only_their_driver_understands_are_left_to_it(uri: str) -> None:
    check_database(uri)


def test_a_resumed_run_continues_its_parent(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "source" / "resnet20", 8)
    live = RunFolder.create(tmp_path / "live" / "resnet20")
    trials = read_trials(folder)
    baseline = folder.read_baseline()
    assert isinstance(baseline, Measurement)
    for part in (trials[:3], trials[3:]):
        with Journal(live) as journal:
            sink = MlflowSink(journal, baseline, experiment="resnet20")
            for trial in part:
                journal.record(trial)
                sink.record(trial)
            assert sink.close()
    assert len(content(Store.of(live, None))) == len(trials)
    assert len(runs_of(Store.of(live, None))) == len(trials) + 1


def test_a_run_made_anew_in_the_same_folder_is_another_run(
    tmp_path: Path, make_run: MakeRun
) -> None:
    import shutil

    first = sync(make_run(tmp_path / "resnet20", 3))
    shutil.rmtree(tmp_path / "resnet20")
    second = sync(make_run(tmp_path / "resnet20", 3, seed=1))
    assert first.parent != second.parent
    expected = len(first.children) + len(second.children)
    assert len(content(Store.beside(tmp_path))) == expected


def test_a_folder_without_runs_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of runs"):
        Server(tmp_path / "nowhere")


def test_a_killed_ui_leaves_no_server_behind(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path / "resnet20", 4)
    command = [sys.executable, "-m", "autocompress", "ui", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
    psutil.wait_procs(family, timeout=10)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_importing_the_sink_loads_neither_mlflow_nor_torch() -> None:
    code = textwrap.dedent(
        """
        import sys
        import autocompress.mlflow.sink, autocompress.mlflow.server
        import autocompress.track.journal, autocompress.report.tables
        print([m for m in ("mlflow", "torch", "plotly", "pandas") if m in sys.modules])
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_real_server_takes_a_run_and_shows_its_pages(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "runs" / "resnet20", 6)
    count = len(read_trials(folder))
    recorder = sync(folder)  # into the SQLite file that the server will show
    with Server(tmp_path / "runs", port=0) as server:
        pages = links_of(server.url, recorder)
        assert f"#/experiments/{recorder.experiment_id}/runs" in pages.runs
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            assert b"MLflow" in answer.read()
        remote = Store(server.url)
        assert len(content(remote)) == count
        # and one that is logged through the server
        other = make_run(tmp_path / "elsewhere" / "other", 4)
        through = sync(other, uri=server.url, best_model=onnx_file(tmp_path / "best.onnx"))
        assert len(through.children) == len(read_trials(other))
        again = sync(other, uri=server.url, best_model=tmp_path / "best.onnx")
        assert again.children == through.children
        process = server._process
    assert process.poll() is not None
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url, timeout=2)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serving_brings_runs_up_to_date_and_ends_cleanly(
    tmp_path: Path, make_run: MakeRun, ending: signal.Signals
) -> None:
    make_run(tmp_path / "resnet20", 4)
    started = RunFolder.create(tmp_path / "started")
    started.write_study({"name": "started"})
    command = [sys.executable, "-m", "autocompress", "ui", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        with urllib.request.urlopen(found["url"], timeout=10) as answer:
            assert answer.status == 200
        assert found["runs"]["resnet20"]["study"].startswith(f"{found['url']}/#/experiments/")
        assert "baseline.json" in found["skipped"]["started"]
        process.send_signal(ending)
        assert process.wait(30) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(found["url"], timeout=2)
