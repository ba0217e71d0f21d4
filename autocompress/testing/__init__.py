"""Contracts that extensions keep to: pytest classes that their authors subclass."""

from __future__ import annotations

import pytest

# a failing assertion then shows its values, as in the author's own test files
pytest.register_assert_rewrite(
    "autocompress.testing.sampler", "autocompress.testing.target", "autocompress.testing.technique"
)
