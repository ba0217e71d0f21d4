"""Random numbers that depend on what they are drawn for, not on when: crops, flips, masks, orders.

A sample that is read again must be the same, or models are compared on different inputs.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class Seeded:
    """The generators of torch (on the CPU), numpy and Python, seeded in here, and put back.

    Generators of a data set's own are out of reach.
    """

    def __enter__(self) -> Seeded:
        self._before = _states()
        self.seed(0)
        return self

    def __exit__(self, *error: object) -> None:
        own, numpys, pythons = self._before
        torch.set_rng_state(own)
        np.random.set_state(numpys)
        random.setstate(pythons)

    def seed(self, number: int) -> None:
        """Begin anew."""
        torch.default_generator.manual_seed(number)  # torch's own would ask for every device
        np.random.seed(number % 2**32)
        random.seed(number)

    def drew(self, number: int) -> bool:
        """Whether anything was drawn since the seed was set to a number; sets it again."""
        own, numpys, pythons = _states()
        self.seed(number)
        fresh, fresh_numpys, fresh_pythons = _states()
        same = torch.equal(own, fresh) and pythons == fresh_pythons
        same = same and np.array_equal(numpys[1], fresh_numpys[1])
        return not (same and numpys[2:] == fresh_numpys[2:])


def _states() -> tuple[torch.Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()
