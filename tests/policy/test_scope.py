"""Which layers a space speaks of: globs, regular expressions, depth, ``only``."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.errors import InputError
from autocompress.policy.hooks import load, path_of
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.patterns import matches, within
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig

NAMES = [
    "backbone.stem",
    "backbone.blocks.0.conv",
    "backbone.blocks.10.conv",
    "neck.conv",
    "backbone_two.conv",
    "head.fc",
]


def chosen(**space: Any) -> list[str]:
    """The layers that a space of 8 or 32 bits leaves a choice."""
    layers = tuple(
        LayerSpec(n, "linear" if n == "head.fc" else "conv", 8, 8, (3, 3), (1, 1)) for n in NAMES
    )
    inventory = Inventory(layers, (), ((8, 4, 4),), "architecture", "weights")
    rule = {"weight_bits": [8, 32], "activation_bits": [8, 32], **space.pop("rule", {})}
    config = SpaceConfig.read({"rules": [rule], **space})
    return [choice.layers[0] for choice in config.bind(inventory).choices]


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        ({}, NAMES),
        ({"rule": {"match": "backbone.*"}}, NAMES[:3]),
        ({"rule": {"match": r"re:backbone\.blocks\.\d\.conv"}}, NAMES[1:2]),
        ({"rule": {"match": r"re:.*\.conv", "exclude": "neck*"}}, [*NAMES[1:3], NAMES[4]]),
        ({"rule": {"kinds": "linear"}}, ["head.fc"]),
        ({"rule": {"depth": [0.0, 0.5]}}, NAMES[:3]),
        ({"rule": {"depth": [1.0, 1.0]}}, NAMES[-1:]),
        ({"only": "backbone"}, NAMES[:3]),
        ({"only": ["neck", "head"]}, ["neck.conv", "head.fc"]),
        ({"only": "re:backbone.*"}, [*NAMES[:3], NAMES[4]]),
        ({"only": "backbone", "rule": {"match": "*.conv"}}, NAMES[1:3]),
    ],
)
def test_what_a_space_speaks_of(space: dict[str, Any], wanted: list[str]) -> None:
    assert chosen(**space) == wanted


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ({"only": "backbon"}, "'backbon' of the search space 'custom' matches no layer.*backbone"),
        ({"rule": {"match": "re:conv("}}, "no regular expression"),
        ({"rule": {"match": "re:backbone"}}, "matches no layer"),
    ],
)
def test_patterns_that_match_nothing_are_refused(space: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        chosen(**space)


def test_a_module_holds_what_lies_in_it() -> None:
    assert within("backbone", "backbone.stem")
    assert not within("backbone", "backbone_two.conv")
    assert matches("a.*", "a.b.c")
    assert not matches("re:a", "a.b")


def test_a_function_is_found_by_its_name() -> None:
    assert path_of(matches) == "autocompress.policy.patterns:matches"
    assert load("autocompress.policy.patterns:matches") is matches
    settings = CompressionSettings.model_validate({"importance": matches})
    assert settings.importance == "autocompress.policy.patterns:matches"
    assert CompressionSettings.model_validate(settings.model_dump(mode="json")) == settings
    with pytest.raises(InputError, match="top of an importable module"):
        path_of(lambda: None)
    with pytest.raises(InputError, match="has no 'matchs'; "):
        load("autocompress.policy.patterns:matchs")
    with pytest.raises(InputError, match="no module 'nowhere'"):
        load("nowhere:matches")
