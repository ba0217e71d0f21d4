"""What a factory's path names in a module, and what is offered where it names nothing."""

from __future__ import annotations

from types import ModuleType

import pytest

from autocompress.errors import InputError
from autocompress.policy.hooks import within


def test_only_public_names_are_offered() -> None:
    module = ModuleType("mine")
    vars(module)["trained"] = lambda: None
    with pytest.raises(InputError, match=r"^mine has no 'nope'; valid: trained$"):
        within(module, "nope")
