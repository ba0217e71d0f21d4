"""Clients in this very process, one after another: for tests, benchmarks and small studies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from autocompress.federated.client import Client


class InProcess:
    """Reaches clients by calling them.

    Args:
        numbers: of the clients.
        client: makes the one with a number; called anew for each message, so that no more than one
            is held.
    """

    def __init__(self, numbers: Sequence[int], client: Callable[[int], Client]) -> None:
        self.numbers = list(numbers)
        self.client = client
        self.waiting: deque[tuple[int, bytes]] = deque()

    def clients(self) -> list[int]:
        """All of them."""
        return self.numbers

    def push(self, client: int, message: bytes) -> None:
        """Keep a message until its answer is asked for."""
        self.waiting.append((client, message))

    def pull(self, seconds: float) -> tuple[int, bytes] | None:
        """Let the next client answer."""
        if not self.waiting:
            return None
        number, message = self.waiting.popleft()
        return number, self.client(number).answer(message)
