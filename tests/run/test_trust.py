"""A stranger's recipe runs no code of its author's: every door, as a user would open it."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tiny_study import STUDY, call, environment

from autocompress.errors import InputError
from autocompress.policy.recovery import ModelSection
from autocompress.run import factories
from autocompress.run.factories import from_elsewhere, import_factory
from autocompress.run.loading import load_model
from autocompress.run.study import load_study, shipped

pytestmark = pytest.mark.timeout(900)


def plant(folder: Path, name: str) -> Path:
    """A module that shows that it was imported."""
    proof = folder / f"{name}.proof"
    (folder / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(proof)!r}).touch()\n")
    return proof


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_study_of_ones_own_imports_and_is_remembered(here: Path) -> None:
    (here / "mine_own.py").write_text("def make(n=1):\n    return n\n")
    assert import_factory("mine_own:make", {"n": 2})(n=2) == 2
    with from_elsewhere("recipe r.yaml"):
        assert import_factory("mine_own:make", {"n": 2})(n=2) == 2
        with pytest.raises(InputError, match="--trust"):
            import_factory("mine_own:make", {"n": 3})  # other arguments, other deeds
        with pytest.raises(InputError, match="--trust"):
            import_factory("mine_own:other")


def test_nothing_of_a_strangers_is_imported(here: Path) -> None:
    proof = plant(here, "stranger_a")
    with (
        from_elsewhere("recipe r.yaml"),
        pytest.raises(InputError, match=r"recipe r\.yaml") as told,
    ):
        import_factory("stranger_a:make")
    assert "stranger_a:make" in str(told.value)
    assert not proof.exists()
    with from_elsewhere("recipe r.yaml", trust=True), pytest.raises(InputError, match="has no"):
        import_factory("stranger_a:make")
    assert proof.exists()


def test_what_was_trusted_once_is_not_trusted_for_ever(here: Path) -> None:
    (here / "stranger_b.py").write_text("def make():\n    return 1\n")
    with from_elsewhere("recipe r.yaml", trust=True):
        import_factory("stranger_b:make")
    with from_elsewhere("recipe r.yaml", named=["stranger_b:make", object()]):
        import_factory("stranger_b:make")
    with from_elsewhere("recipe r.yaml"), pytest.raises(InputError, match="--trust"):
        import_factory("stranger_b:make")


def test_another_file_of_the_same_name_is_not_the_function_that_was_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that brings a module of a name that a study used elsewhere."""
    (here / "mine_there.py").write_text("def make():\n    return 1\n")
    import_factory("mine_there:make")
    monkeypatch.delitem(sys.modules, "mine_there")
    (here / "mine_there.py").unlink()
    unpacked = here / "unpacked"
    unpacked.mkdir()
    proof = plant(unpacked, "mine_there")
    monkeypatch.chdir(unpacked)
    for first in ("", str(unpacked)):  # as with `python -c`, and as with a script in that folder
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        with from_elsewhere("recipe r.yaml"), pytest.raises(InputError, match="--trust"):
            import_factory("mine_there:make")
    assert not proof.exists()


def test_a_named_function_does_not_put_the_folder_first(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --model names is imported; modules beside it take no installed one's place."""
    (here / "mine_named.py").write_text("def make():\n    return 1\n")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(here))])
    with from_elsewhere("recipe r.yaml", named=["mine_named:make"]):
        assert import_factory("mine_named:make")() == 1
    assert sys.path[-1] == str(here)


def test_a_factory_that_fails_is_a_sentence_with_its_line(here: Path) -> None:
    (here / "mine_fails.py").write_text("def make(n):\n    return 1 / n\n")
    with pytest.raises(InputError, match=r"mine_fails:make failed.*ZeroDivisionError.*line 2"):
        load_model(ModelSection(factory="mine_fails:make", args={"n": 0}))


def test_the_list_of_the_packages_own_functions_is_true() -> None:
    """Each is defined where it is said to be, and makes a model or data."""
    for path in factories._OURS:
        module, _, name = path.partition(":")
        assert getattr(importlib.import_module(module), name).__module__ == module


def test_the_packages_own_functions_need_no_word(here: Path) -> None:
    with from_elsewhere("recipe r.yaml"):
        for name in shipped("studies"):
            study = load_study(name)
            for section in (study.model, study.data):
                assert callable(import_factory(section.factory, section.args))


@pytest.mark.parametrize("name", ["cache:Path", "cache:digest", "models:partial", "data:Path"])
def test_what_else_its_modules_hold_is_no_factory(here: Path, name: str) -> None:
    with from_elsewhere("recipe r.yaml"), pytest.raises(InputError):
        import_factory(f"autocompress.workloads.{name}")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00"])
def test_a_damaged_memory_trusts_nobody(here: Path, text: str) -> None:
    (here / "cache").mkdir()
    (here / "cache" / "factories.json").write_text(text)
    with from_elsewhere("recipe r.yaml"), pytest.raises(InputError, match="--trust"):
        import_factory("json:loads")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a study whose factories are the package's own."""
    place = tmp_path_factory.mktemp("own")
    study = {**STUDY, "recovery": {"epochs": 0}}
    study["search"] = {**STUDY["search"], "trials": 4}
    (place / "tiny.yaml").write_text(yaml.safe_dump(study))
    call(place, "search tiny.yaml --json")
    return place / "runs" / "tiny" / "recipes" / "best.yaml"


SECTIONS: dict[str, Any] = {
    "importance": lambda study: None,  # it stands in the recipe's own settings
    "model": lambda study: study["model"].update(factory="stranger_c:make"),
    "data": lambda study: study["data"].update(factory="stranger_c:make"),
    "input_fn": lambda study: study["data"].update(input_fn="stranger_c:make"),
    "target_fn": lambda study: study["data"].update(target_fn="stranger_c:make"),
    "task": lambda study: study["data"].update(task={"factory": "stranger_c:make"}),
    "teacher": lambda study: study["recovery"].update(
        epochs=1, distillation={"teachers": [{"factory": "stranger_c:make"}], "weight": 1.0}
    ),
}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("command", ["apply", "verify"])
def test_no_command_runs_what_a_recipe_names(
    recipe: Path, tmp_path: Path, section: str, command: str
) -> None:
    """In a folder that holds the author's module, as where an archive was unpacked."""
    proof = plant(tmp_path, "stranger_c")
    shutil.copytree(recipe.parent, tmp_path / "recipes")
    path = tmp_path / "recipes" / "best.yaml"
    found = yaml.safe_load(path.read_text())
    SECTIONS[section](found["study"])
    if section == "importance":
        found["settings"]["importance"] = "stranger_c:make"
    if section == "teacher":  # reached where the policy is carried out again
        found["recovery"] = {"final": True, "epochs": 1.0, "rung": 1, "seed": 0}
        found.pop("weights", None)
        layer = next(iter(found["policy"]["layers"].values()))
        assert layer
    path.write_text(yaml.safe_dump(found))
    ask = f"{command} recipes/best.yaml" + (" -o m.onnx" if command == "apply" else "")
    done = call(tmp_path, ask, check=None)
    assert not proof.exists()
    if section != "teacher":
        assert done.returncode == 2, done.stdout + done.stderr
        assert "--trust" in done.stderr


def test_a_model_that_prints_leaves_one_object(recipe: Path, tmp_path: Path) -> None:
    """Before and after, without a line's end; `verify` asks a process of its own."""
    (tmp_path / "noisy.py").write_text(
        "import atexit\n"
        "from autocompress.workloads.models import digits_resnet\n\n\n"
        "def model(**args):\n"
        "    print('I am', end='')\n"
        "    atexit.register(print, 'still here')\n"
        "    return digits_resnet(width=12)\n"
    )
    shutil.copytree(recipe.parent, tmp_path / "recipes")
    found = yaml.safe_load((tmp_path / "recipes" / "best.yaml").read_text())
    found["study"]["model"]["factory"] = "noisy:model"
    (tmp_path / "recipes" / "best.yaml").write_text(yaml.safe_dump(found))
    done = call(tmp_path, "verify recipes/best.yaml --model noisy:model --json", check=None)
    assert "I am" in done.stderr, done.stderr
    assert json.loads(done.stdout)["ok"] in (True, False)
    assert "Traceback" not in done.stderr


def test_verify_ends_with_who_asks(recipe: Path, tmp_path: Path) -> None:
    """Its process of its own hears nothing of a signal to the one that waits for it."""
    (tmp_path / "slow.py").write_text("import time\n\n\ndef model():\n    time.sleep(600)\n")
    shutil.copytree(recipe.parent, tmp_path / "recipes")
    asks = subprocess.Popen(
        [sys.executable, "-m", "autocompress", "verify", "recipes/best.yaml", "--model=slow:model"],
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    family: list[psutil.Process] = []
    end = time.monotonic() + 120
    while not family and time.monotonic() < end:
        time.sleep(0.2)
        family = psutil.Process(asks.pid).children(recursive=True)
    assert family
    time.sleep(5.0)
    asks.terminate()
    asks.wait(60)
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_a_name_beside_the_recipe_takes_no_modules_place(recipe: Path, tmp_path: Path) -> None:
    """The folder that one is in is not on the path of any process that reads a recipe."""
    shutil.copytree(recipe.parent, tmp_path / "recipes")
    proofs = [plant(tmp_path, name) for name in ("torchvision", "onnx", "yaml", "sitecustomize")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "autocompress", "verify", "recipes/best.yaml", "--json"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not [p for p in proofs if p.exists()], done.stderr
    assert json.loads(done.stdout)["ok"] in (True, False)
