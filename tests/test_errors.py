"""Errors: what others raise, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.errors import InputError, explained


@pytest.mark.parametrize(
    ("raises", "words"),
    [
        (lambda: {}["width"], "a name is looked up that is not there (KeyError: 'width')"),
        (lambda: [][3], "an index lies outside"),
        (lambda: nn.Linear(3, 2)(torch.ones(1, 4)), "sizes do not fit each other (RuntimeError: "),
        (lambda: torch.ones(2, 3).view(4, 2), "sizes do not fit each other (RuntimeError: "),
        (lambda: torch.ones(3) + torch.ones(4), "sizes do not fit each other (RuntimeError: "),
        (lambda: nn.Linear(3, 2)(torch.ones(1, 3).int()), "number types do not fit each other"),
        (lambda: nn.Linear(3, 2).weights, "something is asked for that the object does not have"),
        (lambda: nn.Module()(1), "an operation that is needed is not implemented"),
    ],
)
def test_what_others_raise_is_said_in_words_first(raises: Callable[[], Any], words: str) -> None:
    """Real errors of torch and of Python, not texts made up for the test."""
    with pytest.raises(Exception) as caught:
        raises()
    told = explained(caught.value)
    assert told.startswith(words)
    assert type(caught.value).__name__ in told
    assert str(caught.value).splitlines()[0][:40] in told


def test_our_own_errors_are_sentences_already() -> None:
    assert explained(InputError("Give another name.")) == "Give another name."
