"""The reader of files that people hand over: what it refuses, and that it fails in no other way."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from autocompress.errors import AutocompressError, InputError
from autocompress.policy.claims import Claim
from autocompress.policy.policy import Policy
from autocompress.policy.reading import DEEPEST, LARGEST_FILE, read_mapping, read_value
from autocompress.policy.recipe import Recipe
from autocompress.policy.section import Section, _fields, _kinds_in
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.study import DataSection, StudyConfig, load_study, shipped
from autocompress.targets.base import TargetConfig

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
FLAT = "a: &a [1]\nb: [" + "*a, " * 260_000 + "]\n"
DEEP_ALIASES = f"a0: &a0 {'[' * 60}{']' * 60}\na1: {'[' * 60}*a0{']' * 60}\n"

REFUSED: dict[str, tuple[str, bytes, str]] = {
    "large": ("x.yaml", b"a: " + b"x" * LARGEST_FILE, "larger than 16 MB"),
    "large JSON": ("x.json", b'{"a": "' + b"x" * LARGEST_FILE, "larger than 16 MB"),
    "aliases of aliases": ("x.yaml", BOMB.encode(), "more than 100,000 values"),
    "merged aliases": ("x.yaml", MERGED.encode(), "more than 100,000 values"),
    "a megabyte of aliases": ("x.yaml", FLAT.encode(), "more than 100,000 values"),
    "an alias in itself": ("x.yaml", b"a: &a [*a]", "holds itself"),
    "deep": ("x.yaml", b"a: " + b"[" * 5000, "deeper than 100.* Make it flatter"),
    "deep blocks": ("x.yaml", b"- " * 5000, "deeper than 100.* Make it flatter"),
    "deep JSON": ("x.json", b'{"a": ' + b"[" * 10**6, "x.json is not readable as a study in JSON"),
    "deep but closed JSON": ("x.json", b'{"a":' + b"[" * 101 + b"]" * 101 + b"}", "deeper"),
    "deep by aliases": ("x.yaml", DEEP_ALIASES.encode(), "nested deeper than 100"),
    "Latin-1": ("x.yaml", "a: \xe9".encode("latin-1"), "not UTF-8"),
    "UTF-16": ("x.yaml", "a: b".encode("utf-16"), "not UTF-8"),
    "control character": ("x.yaml", b"a: \x01", "control|special characters"),
    "a list": ("x.yaml", b"- a", "must hold a mapping.*got a list"),
    "nothing": ("x.yaml", b"# only a comment", "got nothing"),
    "two documents": ("x.yaml", b"a: 1\n---\nb: 2", "single document"),
    "a key twice": ("x.yaml", b"a: 1\nb: {c: 1, d: 2,\n  c: 3}", "key 'c' is given twice.*line 3"),
    "a key twice in JSON": ("x.json", b'{"a": {"c": 1, "c": 2}}', "key 'c' is given twice"),
    "a number as key": ("x.yaml", b"1: a", "keys are names, got 1"),
    "a list as key": ("x.yaml", b"? [a]\n: b", "unhashable|hashable"),
    "an object": (
        "x.yaml",
        b"a: !!python/object:os.system {}",
        "not determine a constructor",
    ),
    "bytes": ("x.yaml", b"a: !!binary aGk=", "not supported"),
    "no such date": ("x.yaml", b"a: 2001-99-99", "is no timestamp"),
    "no number": ("x.yaml", b"a: !!int x", "is no int"),
    "a long number": ("x.yaml", b"a: " + b"9" * 5000, "is no int"),
    "half a surrogate pair": ("x.json", b'{"a": "\\ud800"}', "surrogates"),
    "unfinished": ("x.yaml", b"a: [", "YAML"),
    "unfinished JSON": ("x.json", b'{"a": ', "JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, case: str) -> None:
    name, content, says = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"(?s){says}") as caught:
        read_mapping(path, "study")
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path, Path("a\0b"), tmp_path / ("x" * 5000)):
        with pytest.raises(InputError, match="policy"):
            read_mapping(path, "policy", missing="Write one.")


def test_what_is_read_is_what_pyyaml_reads(tmp_path: Path) -> None:
    text = """
base: &base {lr: 0.1, names: [a, b]}
more:
  <<: *base
  lr: 0.2
again: [*base, *base]
text: "\\u00e9 \\U0001F600"
day: 2024-02-29
none: ~
"""
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_mapping(path, "study") == yaml.safe_load(text)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_mapping(path, "study") == yaml.safe_load(text)


def test_values_of_options() -> None:
    found = {text: read_value(text) for text in ("0.5", "8", "2:4x", "null", "[1, a]")}
    assert found == {"0.5": 0.5, "8": 8, "2:4x": "2:4x", "null": None, "[1, a]": [1, "a"]}
    for text in ("[", "!!timestamp x", "a: &a [*a]", "\x01"):
        with pytest.raises(InputError, match="is no value"):
            read_value(text)


def test_a_hundred_levels_are_read(tmp_path: Path) -> None:
    inner = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    for name, text in (("x.yaml", f"a: {inner}"), ("x.json", f'{{"a": {inner}}}')):
        (tmp_path / name).write_text(text)
        read_mapping(tmp_path / name, "study")
        (tmp_path / name).write_text(text.replace("[]", "[[]]"))
        with pytest.raises(InputError, match="deeper than 100"):
            read_mapping(tmp_path / name, "study")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
    )
)
def test_json_is_read_as_json(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(json.dumps({"value": value}))
    assert read_mapping(path, "study") == {"value": value}


def test_settings_of_a_recipes_study_that_are_no_mapping_are_left_to_the_study(
    tmp_path: Path,
) -> None:
    whole = yaml.safe_load((FIXTURES / "recipe.yaml").read_text())
    whole["study"]["settings"] = True
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert Recipe.load(path).study["settings"] is True


def test_a_recipe_saved_as_json_keeps_small_numbers(tmp_path: Path) -> None:
    recipe = Recipe.load(FIXTURES / "recipe.yaml")
    claimed = Claim.read({"values": {"loss": 1e-07, "large": 1e22}})
    small = recipe.model_copy(update={"measurement": claimed})
    again = Recipe.load(small.save(tmp_path / "recipe.json"))
    assert again.measurement == claimed


def _read_study(path: Path) -> object:
    study = load_study(path)
    study.model_dump_json()
    return study.space_config()


READERS: dict[str, tuple[Callable[[Path], object], list[Path]]] = {
    "study": (_read_study, [*shipped("studies").values(), FIXTURES / "run" / "study.yaml"]),
    "space": (SpaceConfig.load, list(shipped("search_spaces").values())),
    "policy": (
        lambda path: Policy.read(read_mapping(path, "policy"), where=str(path)).digest,
        [FIXTURES / "policy.yaml"],
    ),
    "recipe": (lambda path: Recipe.load(path).policy, [FIXTURES / "recipe.yaml"]),
}
POLICY = {
    "layers": {
        "conv1": {"prune_ratio": 0.5, "weight_bits": 8, "activation_bits": 8},
        "fc": {"rank_ratio": 0.5, "sparsity": 0.5, "pattern": "2:4"},
    },
    "distill": {"temperature": 2.0},
}
EXAMPLES = 100


def _content(kind: str, draw: st.DataObject) -> bytes:
    if kind == "policy":
        return yaml.safe_dump(POLICY).encode()
    return draw.draw(st.sampled_from(READERS[kind][1])).read_bytes()


def _a_value_or_an_error_of_ours(kind: str, path: Path) -> None:
    with contextlib.suppress(AutocompressError):
        READERS[kind][0](path)


pieces = st.binary(max_size=6) | st.sampled_from(
    b'*a|&a |!!int |!!timestamp |<<: |- |: |? |\n|  |{|[|}|]|"|>\n|#|---\n|\x00|\xff|1e999|.nan'
    b"|null|~x/y.yaml|2001-99-99|${|${HOME}|\\ud800".split(b"|")
)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_changed_bytes_give_a_value_or_an_error_of_ours(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    content = bytearray(_content(kind, data))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 12))] = data.draw(pieces)
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    _a_value_or_an_error_of_ours(kind, path)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "0x10", "~/x", "\0", "latency<=1e999ms", "macs<=nan", "x" * 400, "2:4"])
)
values = st.recursive(
    scalars,
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), x, max_size=3)
    ),
    max_leaves=8,
)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with one of its keys or positions."""
    parts = node.items() if isinstance(node, dict) else enumerate(node)
    for key, part in parts:
        yield node, key
        if isinstance(part, dict | list):
            yield from _places(part)


@pytest.mark.timeout(900)  # a thousand files through YAML in Python; a slow machine took 300 s
@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_changed_structures_give_a_value_or_an_error_of_ours(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    whole = copy.deepcopy(yaml.safe_load(_content(kind, data)))
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(_places(whole))
        if not places:
            break
        container, key = data.draw(st.sampled_from(places))
        what = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "remove":
            del container[key]
        elif what == "add" and isinstance(container, dict):
            container[data.draw(st.text(max_size=6) | st.integers())] = data.draw(values)
        else:
            container[key] = data.draw(values)
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8")
    _a_value_or_an_error_of_ours(kind, path)


def sections(kind: type[Section]) -> Iterator[type[Section]]:
    """A section and all within it."""
    yield kind
    for inner in _kinds_in(_fields(kind).values()):
        if issubclass(inner, Section):
            yield from sections(inner)


NUMBERS = [
    (kind, name)
    for kind in sorted(set(sections(StudyConfig)), key=lambda kind: kind.__name__)
    for name, hint in _fields(kind).items()
    if {"int", "float"} & set(re.findall(r"\w+", str(hint)))
]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda v: getattr(v, "__name__", v))
def test_a_flag_is_no_number(kind: type[Section], name: str) -> None:
    """Whatever holds a number refuses true, alone and in a list."""
    for given_ in (True, [True], [2, False]):
        with pytest.raises(ValidationError) as refused:
            kind.model_validate({name: given_})
        assert name in [error["loc"][0] for error in refused.value.errors()]


@pytest.mark.parametrize(
    ("kind", "name", "holds", "at"),
    [
        (TargetConfig, "lengths", {"x": True}, "lengths.x"),
        (TargetConfig, "lengths", {"x": [4, True]}, "lengths.x"),
        (TargetConfig, "lengths", {"x": {8: False}}, "lengths.x.8"),
        (TargetConfig, "lengths", {True: 1.0}, "lengths"),
        (DataSection, "length", {"x": True}, "length.x"),
        (DataSection, "dynamic", {"x": [True]}, "dynamic.x"),
        (Claim, "values", {"latency_ms": 1.0, "accuracy": True}, "values.accuracy"),
    ],
)
def test_a_flag_is_no_number_in_a_mapping(
    kind: type[Section], name: str, holds: Any, at: str
) -> None:
    with pytest.raises(InputError, match=rf"`{re.escape(at)}`: .*number, got"):
        kind.read({"factory": "a:b", name: holds} if kind is DataSection else {name: holds})


class Inner(Section):
    """Holds a flag."""

    on: bool = False
    count: int = 0


class Outer(Section):
    """Numbers, or sections in their place."""

    each: dict[str, int | Inner] = Field(default_factory=dict)
    one: int | Inner = 0
    several: tuple[int | Inner, ...] = ()


def test_flags_of_sections_beside_numbers_are_theirs() -> None:
    held = {"each": {"x": {"on": True}, "y": 2}, "one": {"on": True}, "several": [{"on": True}, 3]}
    found = Outer.read(held)
    assert [found.each["x"], found.one, found.several[0]] == [Inner(on=True)] * 3
    for wrong in ({"one": True}, {"several": [True]}, {"one": {"count": True}}):
        with pytest.raises(InputError, match=r"number|integer"):
            Outer.read(wrong)


def test_a_flag_in_place_of_a_number_is_told(tmp_path: Path) -> None:
    study = read_mapping(shipped("studies")["quickstart"], "study") | {"max_accuracy_drop": True}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    with pytest.raises(InputError, match=r"`max_accuracy_drop`: .*number, got True"):
        load_study(file)
