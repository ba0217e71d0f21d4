"""``${NAME}`` in a study stands for an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from autocompress.errors import InputError
from autocompress.policy.section import Section

S = TypeVar("S", bound=Section)

NAMED = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
"""What a variable looks like, as a pattern for JSON Schemas too."""
VARIABLE = re.compile(NAMED)

#: what a missing variable should hold, for the error message
_VARIABLES = {
    "AUTOCOMPRESS_DATA": "the folder with the data sets (for the shipped studies: one that holds "
    "`cifar10/{train,val,test}/CLASS/*.jpg` or `cifar10.tar.xz`)",
    "AUTOCOMPRESS_WEIGHTS": "the folder with the trained checkpoints",
    "IMAGENET": "the ImageNet folder, with `train` and `val`",
}


def resolve_variables(value: Any) -> Any:
    """Replace ``${NAME}`` by environment variables, at any depth.

    Raises:
        InputError: a variable is not set; the message says what it should hold.
    """
    if isinstance(value, str):
        return VARIABLE.sub(_lookup, value)
    if isinstance(value, Mapping):
        return {k: resolve_variables(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [resolve_variables(v) for v in value]
    return value


def with_variables(section: S) -> S:
    """A section of a study with ``${NAME}`` replaced.

    Raises:
        InputError: as of ``resolve_variables``.
    """
    return type(section).read(resolve_variables(section.model_dump(mode="json")))


def _lookup(found: re.Match[str]) -> str:
    name = found.group()[2:-1]
    value = os.environ.get(name)
    if not value:
        raise InputError(
            f"The study needs the environment variable {name}: "
            f"{_VARIABLES.get(name, 'it stands in the study file')}. Set it, or write "
            "the path into the study."
        )
    return value
