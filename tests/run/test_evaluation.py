"""What ``--uniform`` may say."""

from __future__ import annotations

import pytest

from autocompress.errors import InputError
from autocompress.run.evaluation import read_uniform


def test_values_are_read_and_bits_of_activations_follow() -> None:
    found = read_uniform("prune_ratio=0.5, weight_bits=8")
    assert found == {"prune_ratio": 0.5, "weight_bits": 8, "activation_bits": 8}


@pytest.mark.parametrize(
    "text",
    ["prune_ratio=abc", "prune_ratio=1", "prune_ratio=", "weight_bits=7", "rank_ratio=2", "x=1"],
)
def test_a_value_that_a_field_cannot_have_is_bad_input_and_not_no_change(text: str) -> None:
    with pytest.raises(InputError, match=text.partition("=")[0]):
        read_uniform(text)
