"""Results that took long, kept in memory while there is room for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

LARGEST_BYTES = 512 * 2**20


class Memo:
    """The results that were asked for last, up to ``LARGEST_BYTES`` together, one at least."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Any], nbytes: Callable[[Any], int]) -> Any:
        """What was made for a key, or is made now; whoever changes it copies it first.

        Args:
            key: names all that the result rests on.
            make: takes long.
            nbytes: how large a result is.
        """
        if key not in self._held:
            made = make()
            self._held[key] = made, nbytes(made)
            self.held_bytes += nbytes(made)
            while self.held_bytes > LARGEST_BYTES and len(self._held) > 1:
                _, (_, size) = self._held.popitem(last=False)
                self.held_bytes -= size
        self._held.move_to_end(key)
        return self._held[key][0]
