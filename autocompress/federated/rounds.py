"""Rounds: all clients are asked the same, what they answer is checked, merged and kept.

A client that leaves, is late, or answers with something that cannot be merged is left out of the
round, with the reason; a round that hears too few fails. Answers are merged as they come, and the
journal keeps them, so that a server that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from autocompress.errors import AutocompressError, InputError
from autocompress.federated.described import checked
from autocompress.federated.journal import Progress, RoundAnswer, RoundJournal
from autocompress.federated.messages import Request, Unanswered, pack, unpack
from autocompress.federated.sums import ClientSums, why_refused

_log = logging.getLogger(__name__)
_CHECKPOINT = 16
"""Answers after which a round that is under way is written down."""


class RoundFailed(AutocompressError):
    """Too few clients answered a round with something that can be merged."""


class Transport(Protocol):
    """Carries messages to clients and back; each client answers one message with one."""

    def clients(self) -> list[int]:
        """Numbers of the clients that can be reached now."""

    def push(self, client: int, message: bytes) -> None:
        """Send a message."""

    def pull(self, seconds: float) -> tuple[int, bytes | Unanswered] | None:
        """The next answer with its client's number, or why that client gave none.

        ``None`` when none came within the time.
        """


@dataclass
class Rounds:
    """Asks clients, round after round.

    Args:
        transport: carries the messages.
        journal: keeps what was answered.
        model: fingerprints of the architecture and the weights that every client must have.
        least: clients that a round must hear, as a share of those that can be reached.
        timeout_s: of one client's answer.
        at_once: clients that are asked at the same time; bounds the memory.
        excluded: client to why it is not asked any more.
    """

    transport: Transport
    journal: RoundJournal
    model: tuple[str, str]
    least: float = 0.5
    timeout_s: float = 600.0
    at_once: int = 16
    excluded: Mapping[int, str] = field(default_factory=dict)
    _has: dict[int, set[str]] = field(default_factory=dict)

    def ask(self, request: Request) -> RoundAnswer:
        """The merged answers; those of an earlier session where it asked the same.

        Raises:
            RoundFailed: too few clients were heard.
        """
        known = self.journal.finished(request.key)
        if known is not None:
            return known
        start = time.monotonic()
        state = self.journal.interrupted(request.key) or Progress()
        reached = self.transport.clients()
        asked = [c for c in reached if c not in state.heard and c not in self.excluded]
        _Round(self, request, state, asked).run()
        state.left.update({c: why for c, why in self.excluded.items() if c in reached})
        for client, reason in sorted(state.left.items()):
            if client in self.excluded:
                continue  # that was said when it was excluded
            _log.warning("Client %d is left out of a round (%s): %s", client, request.kind, reason)
        count = len({*reached, *state.heard})
        wanted = max(1, math.ceil(self.least * count))
        if len(state.heard) < wanted:
            self.journal.checkpoint(request.key, state)
            raise RoundFailed(
                f"A round ({request.kind}) heard {len(state.heard)} of {count} clients and needs "
                f"{wanted} (`federation.least`). Left out: {_listed(state.left) or 'none'}."
            )
        self.journal.finish(request, state, time.monotonic() - start)
        return state.answer()


def _listed(left: Mapping[int, str], most: int = 3) -> str:
    """Why clients were left out, each reason once."""
    reasons: dict[str, list[int]] = {}
    for client, reason in sorted(left.items()):
        reasons.setdefault(reason.rstrip("."), []).append(client)
    told = []
    for reason, clients in list(reasons.items())[:most]:
        several = f"client{'s' if len(clients) > 1 else ''}"
        told.append(f"{several} {', '.join(map(str, clients[:5]))}{_more(clients, 5)}: {reason}")
    return "; ".join(told) + _more(list(reasons), most)


def _more(things: list[Any], most: int) -> str:
    return f" and {len(things) - most} more" if len(things) > most else ""


class _Round:
    """One round over the clients that were not heard yet."""

    def __init__(
        self, rounds: Rounds, request: Request, state: Progress, clients: list[int]
    ) -> None:
        self.rounds, self.request, self.state = rounds, request, state
        self.waiting = clients[::-1]
        self.asked: dict[int, float] = {}
        self.sent_whole: set[int] = set()

    def run(self) -> None:
        """Ask all of them, so many at once."""
        state, unsaved = self.state, 0
        for client in self.waiting:
            state.left.pop(client, None)
        while self.waiting or self.asked:
            while self.waiting and len(self.asked) < self.rounds.at_once:
                self._push(self.waiting.pop())
            got = self.rounds.transport.pull(0.2)
            if got is not None and got[0] in self.asked:
                unsaved += self._take(*got)
            self._give_up_on_late_ones()
            if unsaved >= _CHECKPOINT:
                self.rounds.journal.checkpoint(self.request.key, state)
                unsaved = 0

    def _push(self, client: int, *, whole: bool = False) -> None:
        """Send the request, with the blobs that this client does not have yet."""
        has = set() if whole else self.rounds._has.get(client, set())
        blobs = {n: b for n, b in self.request.blobs.items() if n not in has}
        head = {
            "kind": self.request.kind,
            "key": self.request.key,
            "model": list(self.rounds.model),
            "args": self.request.args,
            "blobs": list(self.request.blobs),
        }
        message = pack(head, {**self.request.arrays, **_as_arrays(blobs)})
        sent = self.state.sent
        sent[client] = sent.get(client, 0) + len(message)
        self.rounds.transport.push(client, message)
        self.asked[client] = time.monotonic()

    def _take(self, client: int, message: bytes | Unanswered) -> int:
        """Merge an answer, or say why not; whether it was one of this round."""
        state = self.state
        if isinstance(message, Unanswered):
            if message.key != self.request.key:
                return 0  # of an earlier round, which went on without it
            self._leave(client, message.reason)
            return 1
        state.received[client] = state.received.get(client, 0) + len(message)
        try:
            head, arrays = unpack(message)
            if head.get("key") != self.request.key:
                return 0  # of an earlier round, which went on without it
            if head.get("missing") and client in self.sent_whole:
                self._leave(client, "it does not keep what it is sent")
                return 1
            if head.get("missing"):
                self.sent_whole.add(client)
                del self.asked[client]
                self._push(client, whole=True)
                return 0
            reason, sums = self._judged(head, arrays)
            if not reason and self.request.kind == "describe":
                state.about[client] = checked(head.get("about"))
        except (InputError, ValueError, KeyError, TypeError, OverflowError) as error:
            reason, sums = f"its answer cannot be read ({error})", ClientSums()
        if reason:
            self._leave(client, reason)
            return 1
        del self.asked[client]
        self.rounds._has.setdefault(client, set()).update(self.request.blobs)
        state.tree.add(sums)
        state.heard.append(client)
        if self.request.each:
            state.each[client] = sums
        return 1

    def _judged(self, head: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[str, ClientSums]:
        if head.get("problem"):
            return str(head["problem"]), ClientSums()
        if tuple(head.get("model") or ()) != self.rounds.model:
            return "its sums are of another model", ClientSums()
        sums = ClientSums.from_arrays(arrays)
        return why_refused(sums, self.request.expected), sums

    def _leave(self, client: int, reason: str) -> None:
        del self.asked[client]
        self.state.left[client] = reason

    def _give_up_on_late_ones(self) -> None:
        now, limit = time.monotonic(), self.rounds.timeout_s
        for client in [c for c, since in self.asked.items() if now - since > limit]:
            self._leave(client, f"no answer within {limit:g} s")


def _as_arrays(blobs: Mapping[str, bytes]) -> dict[str, Any]:
    import numpy as np

    return {f"blob.{name}": np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}
