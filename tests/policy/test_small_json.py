"""What JSON is too short to go over a limit, is found by counting signs; never wrongly."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from autocompress.policy.reading import _check_values, _small

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=40,
)


@given(VALUES, st.integers(0, 110), st.integers(1, 400), st.booleans())
def test_what_is_small_keeps_to_the_limits(value: object, deep: int, most: int, raw: bool) -> None:
    for _ in range(deep):
        value = [value]
    text = json.dumps(value, ensure_ascii=not raw)
    if _small(text, most):
        _check_values(json.loads(text), most)  # it raises where a limit is broken


def test_a_journals_line_is_small_and_half_a_sign_is_not() -> None:
    assert _small(json.dumps({"number": 3, "policy": {"layers": {"a": {"weight_bits": 8}}}}), 1000)
    text = '{"a": "\\ud800"}'
    assert not _small(text, 1000)
    with suppress(ValueError):
        _check_values(json.loads(text), 1000)
        raise AssertionError
