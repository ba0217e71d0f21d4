"""A first study: written with comments, valid, checked against the model and the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from tiny_study import call

from autocompress.errors import InputError
from autocompress.run.first import write_first
from autocompress.run.study import load_study
from autocompress.workloads.models import digits_resnet

MODEL, DATA = "autocompress.workloads.models:digits_resnet", "autocompress.workloads.data:digits"


LONG = "/".join(["x " * 99] * 18)
"""Nearly as long as paths may be."""


def quiet(text: str, fraction: float) -> None:
    pass


def test_the_written_study_reads_as_asked_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    asked = {"budget": ("latency<=2ms", "size<=40%"), "space": "prune", "task": "classification"}
    found = write_first(path, MODEL, DATA, quiet, **asked)  # type: ignore[arg-type]  # of each kind
    study = load_study(path)
    assert (study.name, study.model.factory, study.data.factory) == ("mine", MODEL, DATA)
    assert study.budget == asked["budget"]
    assert (study.space, study.timeout_s) == ("prune", 1800)
    assert found["samples"] == {"train": 1078, "val": 360, "test": 359}
    assert (found["task"], found["metric"]) == ("classification", "accuracy")
    assert sum(line.startswith("#") for line in path.read_text().splitlines()) >= 8


def test_names_with_signs_of_yaml_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, weights = Path("a: {b} #c.yaml"), Path("w: #1.pt")
    weights.write_text("no weights")
    with pytest.raises(InputError, match="is written, but cannot be run yet"):
        write_first(path, MODEL, DATA, quiet, checkpoint=str(weights))
    read = yaml.safe_load(path.read_text())
    assert (read["name"], read["model"]["checkpoint"]) == ("a: {b} #c", "w: #1.pt")


@pytest.mark.parametrize(
    "weights",
    [
        "x\ny",
        "\x1b[31m\tx",
        " x ",
        "x\u2028y",
        "\U0001f600" * 3,
        LONG,
        "null",
        "5",
    ],
)
def test_any_name_of_a_file_stays_in_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("mine.yaml")
    Path(weights).parent.mkdir(parents=True, exist_ok=True)
    Path(weights).write_text("no weights")
    with pytest.raises(InputError, match="is written, but cannot be run yet"):
        write_first(path, MODEL, DATA, quiet, checkpoint=weights)
    assert yaml.safe_load(path.read_text("utf-8"))["model"]["checkpoint"] == weights


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match="there already"):
        write_first(path, MODEL, DATA, quiet)
    assert path.read_text() == "mine"


def test_an_unknown_space_is_bad_input_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="joint"):
        write_first(tmp_path / "mine.yaml", MODEL, DATA, quiet, space="jiont")
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"model": MODEL.replace("digits", "digit")}, "digits_resnet"),
        ({"data": DATA.replace("data:", "datas:")}, "no module 'autocompress.workloads.datas'"),
        ({"data": "digits"}, "package.module:function"),
        ({"checkpoint": "weights.pt"}, "no file 'weights.pt'"),
        ({"task": "clasification"}, "classification"),
    ],
)
def test_after_a_mistyped_argument_the_mended_command_works(
    tmp_path: Path, asked: dict[str, str], says: str
) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=says):
        write_first(path, **{"model": MODEL, "data": DATA, "progress": quiet, **asked})  # type: ignore[arg-type]  # of each kind
    assert not path.exists()


def test_the_command_writes_a_study_that_can_be_searched(tmp_path: Path) -> None:
    done = call(tmp_path, f"init {MODEL} --data {DATA} -o mine.yaml --budget macs<=0.9x --json")
    assert json.loads(done.stdout)["study"] == "mine.yaml"
    dry = json.loads(call(tmp_path, "search mine.yaml --dry-run --json").stdout)
    assert dry["can_be_met"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = (", "cannot be imported.*SyntaxError: '\\(' was never closed"),
        ("import no_such_thing", "No module named 'no_such_thing'.*line 1"),
        ("\n1 / 0", "ZeroDivisionError.*line 2"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "def make():\n    raise SystemExit(3)",
            "failed with .*SystemExit: 3.*line 2",
        ),
    ],
)
def test_a_module_that_fails_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    name = f"failing_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"{name}.*{says}") as caught:
        write_first(tmp_path / "mine.yaml", f"{name}:make", DATA, quiet)
    # what cannot be imported is refused before there is a file
    written = "is written, but cannot be run yet" in str(caught.value)
    assert written == (tmp_path / "mine.yaml").exists() == text.startswith("def")


def test_a_variable_stands_for_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    monkeypatch.setenv("MY_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=r"no file .*to load weights"):
        write_first(path, MODEL, DATA, quiet, checkpoint="${MY_WEIGHTS}/w.pt")
    save_file(digits_resnet().state_dict(), tmp_path / "w.safetensors")
    write_first(path, MODEL, DATA, quiet, checkpoint="${MY_WEIGHTS}/w.safetensors")
    assert load_study(path).model.checkpoint == "${MY_WEIGHTS}/w.safetensors"


def test_data_that_cannot_be_calibrated_on_are_told_beside_the_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "import torch\n"
        "def make(): return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))\n"
        "def data(): return {'train': torch.utils.data.TensorDataset(\n"
        "    torch.full((90, 4), torch.nan), torch.arange(90) % 3)}\n"
    )
    (tmp_path / "not_finite.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"is written, but cannot be run yet.*must be finite"):
        write_first(tmp_path / "mine.yaml", "not_finite:make", "not_finite:data", quiet)
