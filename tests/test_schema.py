"""JSON Schemas, judged by the jsonschema library, and the reference that is made from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from autocompress.cli import app
from autocompress.errors import InputError
from autocompress.policy.recipe import Recipe
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.schema import reference, schema
from autocompress.run.study import read_study, shipped

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "run_0_1"
FILES = {
    "study": [*shipped("studies").values(), FIXTURES / "study.yaml", FIXTURES / "run/study.yaml"],
    "space": list(shipped("search_spaces").values()),
    "recipe": [FIXTURES / "recipe.yaml", FIXTURES / "run/recipes/best.yaml"],
}
CASES = [(what, path) for what, paths in FILES.items() for path in paths]


def valid(what: str, data: Any) -> bool:
    return bool(Draft202012Validator(schema(what)).is_valid(data))


@pytest.mark.parametrize("what", FILES)
def test_it_is_a_schema_and_is_printed(what: str) -> None:
    printed = CliRunner().invoke(app, ["schema", what])
    assert printed.exit_code == 0
    found = json.loads(printed.stdout)
    assert found == schema(what)
    Draft202012Validator.check_schema(found)


@pytest.mark.parametrize(("what", "path"), CASES, ids=lambda x: getattr(x, "name", x))
def test_shipped_and_earlier_files_are_valid(what: str, path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    Draft202012Validator(schema(what)).validate(data)
    assert not valid(what, {**data, "unknown": 1})


LEAST: dict[str, Any] = {"model": {"factory": "a:b"}, "data": {"factory": "a:b"}}
MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("study", {**LEAST, "serch": {}}),
    ("study", {"data": LEAST["data"]}),
    ("study", {**LEAST, "model": {}}),
    ("study", {**LEAST, "search": {"trials": 0}}),
    ("study", {**LEAST, "search": {"sampler": 3}}),
    ("study", {**LEAST, "recovery": {"schedule": {"augment": ["crp"]}}}),
    ("study", {**LEAST, "recovery": {"distillation": {"teachers": [{"args": {}}]}}}),
    ("study", {**LEAST, "space": {"rules": [{"prune_rato": 0}]}}),
    ("study", {**LEAST, "space": 5}),
    ("study", {**LEAST, "target": {"thread": 1}}),
    ("study", {**LEAST, "target": {"threads": 0}}),
    ("study", {**LEAST, "target": {"runtime": "onnx"}}),
    ("study", {**LEAST, "target": {"runtime": "openvino", "providers": ["x"]}}),
    ("study", {**LEAST, "target": {"lengths": {"ids": -1}}}),
    ("study", {**LEAST, "target": {"threds": 1, "table": "${FOO}"}}),
    ("study", {**LEAST, "target": {"threads": 0, "table": "${FOO}"}}),
    ("study", {**LEAST, "target": {"runtime": "${FOO}", "threds": 1}}),
    ("study", {**LEAST, "data": {"factory": "a:b", "task": {"args": {}}}}),
    ("study", {**LEAST, "data": {"factory": "a:b", "task": {"factory": "x", "arg": {}}}}),
    ("space", {}),
    ("space", {"rules": [{"weight_bits": [5]}]}),
    ("space", {"rules": [{"rank_ratio": 0}]}),
    ("space", {"rules": [{"pattern": ["4:8"]}]}),
]


@pytest.mark.parametrize(("what", "data"), MISTAKES)
def test_schema_and_reader_refuse_the_same_mistakes(what: str, data: dict[str, Any]) -> None:
    assert not valid(what, data)
    read = {"study": read_study, "space": SpaceConfig.read}[what]
    with pytest.raises(InputError):
        read({"name": "x", **data})  # type: ignore[operator]  # two functions of one argument


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"runtime": "torch", "compile": True},
        {"runtime": "openvino", "threads": 2, "providers": None, "compile": False},
        {"threads": "${N}", "lengths": {"ids": [16, 128]}},
        {"runtime": "${R}", "compile": True},
        {"table": "table.json", "batch": 4, "providers": ["CPUExecutionProvider"]},
    ],
)
def test_targets_that_the_reader_takes_are_valid(target: dict[str, Any]) -> None:
    data = {**LEAST, "target": target}
    assert valid("study", data)
    assert read_study({"name": "x", **data}).model_dump(mode="json")["target"] == target


def sections(what: str) -> list[tuple[str | int, ...]]:
    """Paths of all sections of a file, those in lists and mappings too, as its schema has them."""
    top = schema(what)

    def inside(node: Any, path: tuple[str | int, ...], seen: frozenset[str]) -> Iterator[Any]:
        for option in node.get("anyOf", node.get("oneOf", [])):
            yield from inside(option, path, seen)
        name = node.get("$ref", "").rpartition("/")[2]
        if name and name not in seen and not name.startswith(OTHER_RUNTIMES):
            node, seen = top["$defs"][name], seen | {name}
            if not node.get("additionalProperties", True):
                yield path
            for key, value in node.get("properties", {}).items():
                yield from inside(value, (*path, key), seen)
        elif isinstance(node.get("items"), dict):
            yield from inside(node["items"], (*path, 0), seen)
        elif isinstance(node.get("additionalProperties"), dict):
            yield from inside(node["additionalProperties"], (*path, "some"), seen)

    return [p for key, node in top["properties"].items() for p in inside(node, (key,), frozenset())]


OTHER_RUNTIMES = (
    "Target_openvino",
    "Target_torch",
    "Target_executorch",
    "Target_litert",
    "Target_onnxruntime-web",
)
"""Read where `runtime` names them only."""
READERS: dict[str, Callable[[Any], object]] = {
    "study": read_study,
    "space": SpaceConfig.read,
    "recipe": Recipe.read,
}
NESTED = [(what, path) for what in READERS for path in sections(what) if path[0] != "study"]


def test_there_are_sections_in_sections() -> None:
    assert ("study", ("data", "task")) in NESTED
    assert ("study", ("recovery", "distillation", "teachers", 0)) in NESTED
    assert ("study", ("target",)) in NESTED
    assert ("recipe", ("policy", "layers", "some")) in NESTED


@pytest.mark.parametrize(("what", "path"), NESTED)
def test_the_path_of_a_mistake_is_whole(what: str, path: tuple[str | int, ...]) -> None:
    data: Any = {"no_such_key": 1}
    for part in reversed(path):
        data = [data] if part == 0 else {part: data}
    with pytest.raises(InputError) as caught:
        READERS[what](data)
    assert f"an unknown key '{'.'.join(map(str, path))}.no_such_key'" in str(caught.value)


@pytest.mark.parametrize(
    ("former", "name", "value"),
    [("seeds", "starts", False), ("random_baselines", "random_references", 0)],
)
def test_keys_of_earlier_versions_are_read_and_written_by_their_present_name(
    former: str, name: str, value: Any
) -> None:
    data = {**LEAST, "search": {former: value}}
    assert valid("study", data)
    search = read_study({"name": "x", **data}).search.model_dump()
    assert search[name] == value
    assert former not in search
    assert read_study({"name": "x", **LEAST}).search.model_dump()[name] != value
    with pytest.raises(InputError, match=former):
        read_study({"name": "x", **LEAST, "search": {former: value, name: value}})


def test_a_recipe_with_a_wrong_policy_is_not_valid() -> None:
    data = yaml.safe_load((FIXTURES / "recipe.yaml").read_text())
    data["policy"] = {"layers": {"conv1": {"prune_rato": 0.5}}}
    assert not valid("recipe", data)
    with pytest.raises(InputError, match="prune_ratio"):
        Recipe.read(data)


def test_single_values_stand_for_lists_of_one() -> None:
    rule = {"match": "*", "prune_ratio": 0.5, "rank_ratio": None, "weight_bits": 8}
    for data in ({"rules": [rule]}, {"rules": [rule], "distill": True, "students": "vgg4"}):
        assert valid("space", data)
        SpaceConfig.read(data)


@pytest.mark.parametrize("what", FILES)
def test_every_field_of_every_section_is_described(what: str) -> None:
    found = schema(what)
    sections = {what: found, **found.get("$defs", {})}
    silent = [
        f"{name}.{field}"
        for name, section in sections.items()
        for field, value in section.get("properties", {}).items()
        if not value.get("description")
    ]
    assert silent == []


def test_the_reference_in_the_docs_is_the_one_that_is_made() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == reference(), "autocompress schema --markdown > docs/reference.md"
    printed = CliRunner().invoke(app, ["schema", "--markdown"])
    assert printed.stdout == written


def test_another_word_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'study'"):
        schema("studies")
