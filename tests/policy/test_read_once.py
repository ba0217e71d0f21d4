"""Layer policies are read once each; what is read then is what would be read anew."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError
from autocompress.policy import policy as read_once
from autocompress.policy.policy import Policy

VALUES = st.sampled_from([0, 0.0, -0.0, 1, 1.0, True, False, None, 8, 8.0, "8", 0.5, "gone", [8]])
NAMES = st.sampled_from(["prune_ratio", "weight_bits", "sparsity", "block", "rank_ratio", "none"])
LAYER = st.dictionaries(NAMES, VALUES, max_size=3)


def told(layer: dict[str, Any]) -> str:
    """The policy of a layer with the kinds of its values, or why there is none."""
    try:
        return repr(Policy.read({"layers": {"a": layer}}, where="it"))
    except InputError as error:
        return str(error)


@given(st.lists(LAYER, min_size=1, max_size=6))
def test_what_was_read_before_changes_nothing(layers: list[dict[str, Any]]) -> None:
    read_once._READ.clear()
    after_others = [told(layer) for layer in layers * 2]
    for layer, found in zip(layers * 2, after_others, strict=True):
        read_once._READ.clear()
        assert told(layer) == found
