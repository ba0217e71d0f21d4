"""Names and stores that a stranger's run asks for: none leads elsewhere, every name is taken."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow_runs import logged_live, onnx_file, runs_of
from typer.testing import CliRunner

from autocompress.cli import app
from autocompress.errors import InputError
from autocompress.mlflow.names import experiment_name, model_name, safe_part, tag_value
from autocompress.mlflow.server import sync_all
from autocompress.mlflow.store import Store, sync
from autocompress.run.tracking import track
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]
ODD = [
    "tiny.v2",
    "../../../outside",
    "..",
    ".",
    "a/b:c",
    'it\'s "50%"',
    "\x1b[2J\x07\nred",
    "日本",
    "x" * 600,
    " ",
]


def asking(folder: RunFolder, **tracking: str) -> RunFolder:
    """A run whose study asks for something of MLflow."""
    study = yaml.safe_load(folder.study.read_text())
    folder.write_study({**study, "tracking": tracking})
    return folder


def files(place: Path) -> Iterator[Path]:
    return (p for p in place.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("through", "name"),
    [*(("track", name) for name in [*ODD, "{tmp}/absolute"]), ("ui", ODD[0]), ("ui", ODD[1])],
)
def test_an_experiments_name_is_no_path(
    through: str, name: str, tmp_path: Path, make_run: MakeRun
) -> None:
    """Artifacts lie in one folder of their own, and the best model is registered."""
    runs = tmp_path / "a" / "b" / "runs"
    folder = asking(make_run(runs / "r", 4), experiment=name.format(tmp=tmp_path))
    model = folder.models / "best.onnx"
    onnx_file(model)
    folder.write_front({**folder.read_front(), "model": "models/best.onnx"})
    if through == "track":
        told = track(folder.root, None, None)["experiment"]
        assert told.isprintable()
    else:
        done, skipped = sync_all(runs)
        assert not skipped
        told = done["r"].experiment
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    assert {p.name for p in runs.iterdir()} == {"r", "mlflow.db", "mlflow-artifacts"}
    (own,) = (runs / "mlflow-artifacts").iterdir()
    client = Store.beside(runs).client()
    experiment = client.get_experiment_by_name(told)
    assert experiment.artifact_location.endswith(f"mlflow-artifacts/{own.name}")
    (registered,) = client.search_registered_models()
    assert registered.name == model_name(told)
    assert client.search_model_versions(f"name = '{registered.name}'")


def test_an_experiment_that_is_there_stays_where_it_is(tmp_path: Path, make_run: MakeRun) -> None:
    folder = asking(make_run(tmp_path / "runs" / "r", 3), experiment="a b")
    store = Store.of(folder, None)
    before = (tmp_path / "runs" / "mlflow-artifacts" / "a b").as_uri()
    store.client().create_experiment("a b", artifact_location=before)
    sync(folder)
    assert store.client().get_experiment_by_name("a b").artifact_location == before
    assert len(runs_of(store, "a b")) > 1


@given(st.text() | st.sampled_from([*ODD, "\ud800"]))
def test_mlflow_takes_every_name(text: str) -> None:
    """By its own validators."""
    from mlflow.utils import validation

    experiment = experiment_name(text)
    assert experiment.isprintable()
    assert len(experiment) <= 256
    validation._validate_experiment_name(experiment)
    name = model_name(experiment)
    validation._validate_model_name(name)
    validation._validate_logged_model_name(name)
    assert len(name) <= 256
    part = safe_part(text)
    assert Path("/root", part).parent == Path("/root")
    assert part not in ("", ".", "..")
    assert not {*"'\"\n\\"} & {*tag_value(text)}


@given(st.sets(st.text(min_size=1), min_size=2, max_size=2))
def test_two_experiments_share_no_folder_and_no_model(texts: set[str]) -> None:
    assert len({safe_part(t) for t in texts}) == 2


def test_plain_names_stay_as_they_are() -> None:
    for name in ("resnet20", "my_study-2"):
        assert experiment_name(name) == safe_part(name) == tag_value(name) == name
    assert tag_value("tiny.v2 of mine-0a") == "tiny.v2 of mine-0a"


def test_a_name_with_quotes_is_found_again(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path / "it's" / "it's", 3)
    first, again = sync(folder), sync(folder)
    assert first.parent == again.parent
    assert first.children == again.children


@pytest.mark.parametrize("scheme", ["sqlite", "http"])
@pytest.mark.parametrize("through", ["track", "command", "python", "ui"])
def test_a_run_sends_nothing_where_only_it_says_so(
    scheme: str, through: str, tmp_path: Path, make_run: MakeRun
) -> None:
    victim = tmp_path / "victim.db"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        uri = f"sqlite:///{victim}" if scheme == "sqlite" else f"http://me:pass@127.0.0.1:{port}"
        folder = asking(make_run(tmp_path / "runs" / "r", 3), uri=uri)
        if through == "ui":
            done, skipped = sync_all(tmp_path / "runs")
            assert (list(done), skipped) == (["r"], {})
        elif through == "command":
            said = CliRunner().invoke(app, ["track", str(folder.root)])
            assert said.exit_code != 0
        else:
            act: Any = (lambda: track(folder.root, None, None)) if through == "track" else None
            with pytest.raises(InputError, match="on your word only") as told:
                (act or (lambda: sync(folder)))()
            command = str(told.value).split("`")[1]
            assert shlex.split(command)[:3] == ["autocompress", "track", str(folder.root)]
            assert shlex.split(command)[3:] == ["--uri", uri.replace(":pass", "")]
        with pytest.raises(TimeoutError):
            server.accept()
    assert not victim.exists()


def test_the_command_that_is_told_holds_no_other(tmp_path: Path, make_run: MakeRun) -> None:
    """It is there to be copied into a shell."""
    hostile = "http://x/\x1b[2J`; touch pwned; $(id)\n'"
    folder = asking(make_run(tmp_path / "r", 2), uri=hostile)
    with pytest.raises(InputError) as told:
        track(folder.root, None, None)
    text = str(told.value)
    assert text.isprintable()
    given = text.partition("say `autocompress ")[2]
    assert shlex.split(given)[:2] == ["track", str(folder.root)]
    assert shlex.split(given)[3].startswith("http://x/?[2J`; touch pwned; $(id) '`,")


def test_what_a_run_names_is_taken_on_the_users_word(tmp_path: Path, make_run: MakeRun) -> None:
    """And the store beside the run needs none, also where the study names it."""
    beside = Store.beside(tmp_path).uri
    folder = asking(make_run(tmp_path / "r", 2), uri=beside)
    assert track(folder.root, None, None)["uri"] == beside
    other = f"sqlite:///{tmp_path / 'other.db'}"
    asking(folder, uri=other)
    assert track(folder.root, other, None)["uri"] == other
    assert track(folder.root, beside, None)["uri"] == beside


def test_what_a_search_prints_brings_its_store_up_to_date(
    tmp_path: Path, make_run: MakeRun
) -> None:
    """The very command, typed in as it was told, once the store answers."""
    source = make_run(tmp_path / "source" / "resnet20", 3)
    live = RunFolder.create(tmp_path / "my runs" / "resnet20")
    place = tmp_path / "later"
    place.write_text("in the way")
    _, said = logged_live(source, live, uri=f"sqlite:///{place}/ml.db")
    command = said[0].split("`")[1]
    place.unlink()
    place.mkdir()
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trials"] == len(RunView.load(live).trials)


def test_a_copy_is_another_run_and_one_that_was_moved_is_not(
    tmp_path: Path, make_run: MakeRun
) -> None:
    first = sync(make_run(tmp_path / "one", 3))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    done, skipped = sync_all(tmp_path)
    assert not skipped
    assert done["one"].parent == first.parent != done["two"].parent
    (tmp_path / "one").rename(tmp_path / "three")
    done, _ = sync_all(tmp_path)
    assert done["three"].parent == first.parent
    shutil.copytree(tmp_path / "three", tmp_path / "four")
    done, _ = sync_all(tmp_path)
    assert len({r.parent for r in done.values()}) == len(done) == 3
    assert done["three"].parent == first.parent
