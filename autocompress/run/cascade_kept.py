"""Files in which a run's ``cascade`` keeps what was computed, for the next time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import InputError, explained


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Say which file cannot be read of what is kept for the next time.

    Raises:
        InputError: the block stumbled over what the file holds.
    """
    try:
        yield
    except (ValueError, EOFError, KeyError, TypeError, BadZipFile) as error:
        raise InputError(
            f"{path} is damaged: {explained(error)}. Delete it; it is computed again."
        ) from None


def kept_answers(path: Path, count: int) -> NDArray[Any]:
    """Answers that are kept for the next time, one for each of so many inputs.

    Raises:
        InputError: the file is damaged.
    """
    with naming_damage(path):
        found: NDArray[Any] = np.load(path, allow_pickle=False)
        if found.shape[:1] != (count,):
            raise ValueError(f"it is to answer {count} inputs, and its shape is {found.shape}")
        return found
