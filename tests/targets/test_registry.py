"""Targets by name: fields of each runtime, and packages that are broken."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from autocompress.errors import InputError, TargetUnavailable
from autocompress.run.schema import schema
from autocompress.run.study import read_study
from autocompress.targets import (
    TargetConfig,
    available_targets,
    get_target,
    read_config,
    registry,
)

RUNTIMES = ("onnxruntime", "openvino", "torch", "executorch", "onnxruntime-web", "litert")
"""The built-in ones, in the order in which they are shown."""


def test_every_runtime_has_fields_of_its_own() -> None:
    assert read_config({"runtime": "torch", "compile": True}).model_dump()["compile"] is True
    chosen = read_config({"providers": ["CPUExecutionProvider"]})
    assert chosen.model_dump()["providers"] == ("CPUExecutionProvider",)
    with pytest.raises(InputError, match="runtime 'onnxruntime' has an unknown key 'compile'"):
        read_config({"compile": True})
    with pytest.raises(InputError, match="runtime 'torch' has an unknown key 'providers'"):
        read_config({"runtime": "torch", "providers": ["CPUExecutionProvider"]})


def test_the_nearest_key_is_one_of_that_runtime() -> None:
    with pytest.raises(InputError, match="did you mean 'compile'"):
        read_config({"runtime": "torch", "compiled": True})
    with pytest.raises(InputError) as raised:
        read_config({"compiled": True})
    assert "did you mean" not in str(raised.value)


def test_an_unknown_runtime_names_the_nearest_and_those_that_are_here() -> None:
    with pytest.raises(InputError, match="did you mean 'onnxruntime'") as raised:
        read_config({"runtime": "onnx_runtime"})
    usable = [found.runtime for found in available_targets() if found.available]
    assert f"usable here: {', '.join(usable)}" in str(raised.value)


def test_fields_that_ask_for_nothing_are_read_with_every_runtime() -> None:
    """Files of the time when all runtimes had all fields may hold them."""
    old = {"runtime": "torch", "threads": 2, "providers": None, "compile": False}
    assert read_config(old) == read_config({"runtime": "torch", "threads": 2})
    assert read_config({"providers": None, "compile": False}) == read_config({})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_config_is_read_into_its_runtimes_model_once(runtime: str) -> None:
    """Also where the runtime is not installed: reading needs none."""
    general = TargetConfig(runtime=runtime, threads=3)
    config = read_config(general)
    assert type(config) is registry.load(runtime).config_model
    assert (config.runtime, config.threads) == (runtime, 3)
    assert read_config(config) is config
    assert read_config(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_reading_a_config_loads_no_runtime() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "openvino", "executorch", "ai_edge_litert"]
    code = (
        "import sys\nfrom autocompress.targets import read_config\n"
        f"for name in {RUNTIMES}: read_config({{'runtime': name}})\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes modules and their entry points known, as installed packages do."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(code: str = "", *others: EntryPoint, **places: str) -> None:
        (tmp_path / "plug_in_of_a_test.py").write_text(code, encoding="utf-8")
        made = [EntryPoint(name, value, registry.GROUP) for name, value in places.items()]
        made += others
        monkeypatch.setattr(registry, "entry_points", lambda group: made)

    yield make
    sys.modules.pop("plug_in_of_a_test", None)


GOOD = """
from autocompress.targets.onnx_runtime import OnnxRuntimeConfig, OnnxRuntimeTarget

class Config(OnnxRuntimeConfig):
    colour: str = "red"

class Good(OnnxRuntimeTarget):
    name = "good"
    config_model = Config
"""


def test_a_target_of_a_package_is_found_by_its_name(install: Install) -> None:
    install(GOOD, good="plug_in_of_a_test:Good")
    assert [found.runtime for found in available_targets()] == [*RUNTIMES, "good"]
    assert available_targets()[-1].available
    target = get_target({"runtime": "good", "colour": "blue", "threads": 2})
    assert target.config.model_dump()["colour"] == "blue"
    assert target.describe()["runtime"] == "good"
    with pytest.raises(InputError, match="did you mean 'colour'"):
        get_target({"runtime": "good", "color": "blue"})


def test_a_study_knows_the_fields_of_a_target_of_a_package(install: Install) -> None:
    install(GOOD, good="plug_in_of_a_test:Good")
    factories = {"model": {"factory": "a:b"}, "data": {"factory": "a:b"}}

    def study(**more: object) -> dict[str, object]:
        return {"name": "x", **factories, "target": {"runtime": "good", "table": "${T}", **more}}

    told = Draft202012Validator(schema("study"))
    assert told.is_valid(study(colour="blue"))
    read_study(study(colour="blue"))
    for wrong in ({"color": "blue"}, {"colour": 3}):
        assert not told.is_valid(study(**wrong))
        with pytest.raises(InputError, match="colour"):
            read_study(study(**wrong))


BROKEN = """
from autocompress.targets.onnx_runtime import OnnxRuntimeTarget

class Odd(OnnxRuntimeTarget):
    name = "odd"

    @classmethod
    def present(cls):
        raise OSError("no licence")
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("other = 3", "AttributeError"),
        ("Odd = dict", "has no suffix, config_model, availability"),
        (GOOD.replace('name = "good"', 'name = "other"') + "\nOdd = Good", "is named 'other'"),
        (
            BROKEN,
            "installed, but broken: the system refuses a file or a connection (OSError",
        ),
    ],
)
def test_a_broken_package_says_why_and_breaks_no_other(
    code: str, said: str, install: Install
) -> None:
    install(code, odd="plug_in_of_a_test:Odd")
    *others, odd = available_targets()
    assert [found.runtime for found in others] == list(RUNTIMES)
    assert (odd.runtime, odd.available) == ("odd", False)
    assert said in odd.reason
    assert get_target("onnxruntime").name == "onnxruntime"
    usable = ", ".join(found.runtime for found in others if found.available)
    with pytest.raises(InputError, match=rf"usable here: {usable}\)"):
        get_target("tensorflow")
    with pytest.raises(TargetUnavailable, match=re.escape(said)):
        get_target("odd")


def test_a_name_that_two_packages_have_is_refused(install: Install) -> None:
    second = EntryPoint("good", "plug_in_of_a_test:Better", registry.GROUP)
    install(GOOD + "\nBetter = Good\n", second, good="plug_in_of_a_test:Good")
    said = r"'good' is offered by .+test:Better\) and by .+test:Good\); uninstall all but one"
    for found in available_targets()[len(RUNTIMES) :]:
        assert (found.runtime, found.available) == ("good", False)
        assert re.search(said, found.reason)
    with pytest.raises(TargetUnavailable, match=said):
        get_target("good")


def test_a_name_belongs_to_the_built_in_runtime_that_has_it(install: Install) -> None:
    install(GOOD.replace('name = "good"', 'name = "torch"'), torch="plug_in_of_a_test:Good")
    *_, found = available_targets()
    assert (found.runtime, found.available) == ("torch", False)
    assert "the name belongs to autocompress.targets.torch_runtime:TorchTarget" in found.reason
    assert get_target("torch").suffix == ".pt2"
