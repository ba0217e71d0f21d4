"""What rounds were answered, on disk: a server that was killed does not ask again.

``rounds.jsonl`` has one line per round: what was asked, who was heard, who was left out and why,
and the bytes of every client. The sums lie beside it, one file per round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.federated.messages import Request, pack, unpack
from autocompress.federated.sums import ClientSums, Tree
from autocompress.policy.writing import replacing


@dataclass(frozen=True)
class RoundAnswer:
    """What came of a round.

    Args:
        sums: of all clients that were heard.
        clients: their numbers.
        left: client to why it was left out.
        each: client to its own sums, where the request asked for them.
        about: client to what else it told, plain data.
    """

    sums: ClientSums
    clients: tuple[int, ...]
    left: Mapping[int, str] = field(default_factory=dict)
    each: Mapping[int, ClientSums] = field(default_factory=dict)
    about: Mapping[int, Any] = field(default_factory=dict)


@dataclass
class Progress:
    """A round that is under way.

    Args:
        tree: of the answers so far.
        heard: clients in it.
        left, each, about: as in ``RoundAnswer``.
        sent, received: bytes by client.
    """

    tree: Tree = field(default_factory=Tree)
    heard: list[int] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    each: dict[int, ClientSums] = field(default_factory=dict)
    about: dict[int, Any] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)

    def answer(self) -> RoundAnswer:
        """What it comes to."""
        heard = tuple(sorted(self.heard))
        return RoundAnswer(self.tree.result(), heard, self.left, self.each, self.about)


class RoundJournal:
    """Keeps the rounds of a study.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        """One JSON object per round."""
        return self.folder / "rounds.jsonl"

    def rounds(self) -> list[dict[str, Any]]:
        """All finished rounds in their order, without a line that a crash cut off."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def finished(self, key: str) -> RoundAnswer | None:
        """What a round that asked the same came to."""
        state = self._read(self.folder / f"{key}.safetensors")
        return None if state is None else state.answer()

    def interrupted(self, key: str) -> Progress | None:
        """How far a round came that was not finished."""
        return self._read(self.folder / f"{key}.partial")

    def checkpoint(self, key: str, state: Progress) -> None:
        """Write down how far a round is."""
        self._write(self.folder / f"{key}.partial", state)

    def finish(self, request: Request, state: Progress, seconds: float) -> None:
        """Write down what a round came to."""
        self._write(self.folder / f"{request.key}.safetensors", state)
        (self.folder / f"{request.key}.partial").unlink(missing_ok=True)
        line = {
            "round": len(self.rounds()) + 1,
            "kind": request.kind,
            "key": request.key,
            "clients": sorted(state.heard),
            "left": state.left,
            "sent_bytes": state.sent,
            "received_bytes": state.received,
            "seconds": round(seconds, 3),
        }
        # a line that a crash cut off must not swallow this one
        with self.path.open("a+", encoding="utf-8") as file:
            file.seek(0)
            text = file.read()
            lead = "\n" if text and not text.endswith("\n") else ""
            file.write(f"{lead}{json.dumps(line)}\n")

    def _write(self, path: Path, state: Progress) -> None:
        head = {
            "sizes": [count for count, _ in state.tree.parts],
            "heard": state.heard,
            "left": list(state.left.items()),
            "each": list(state.each),
            "about": list(state.about.items()),
            "sent": list(state.sent.items()),
            "received": list(state.received.items()),
        }
        arrays = _prefixed("part", [sums for _, sums in state.tree.parts])
        arrays |= _prefixed("each", list(state.each.values()))
        with replacing(path) as partial:
            partial.write_bytes(pack(head, arrays))

    def _read(self, path: Path) -> Progress | None:
        if not path.exists():
            return None
        head, arrays = unpack(path.read_bytes())
        parts = [(count, _unprefixed(f"part{i}.", arrays)) for i, count in enumerate(head["sizes"])]
        each = {c: _unprefixed(f"each{i}.", arrays) for i, c in enumerate(head["each"])}
        pairs = (dict(head[name]) for name in ("left", "about", "sent", "received"))
        left, about, sent, received = pairs
        return Progress(Tree(parts), head["heard"], left, each, about, sent, received)


def _prefixed(kind: str, several: list[ClientSums]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{kind}{i}.{name}": array
        for i, sums in enumerate(several)
        for name, array in sums.to_arrays().items()
    }


def _unprefixed(prefix: str, arrays: Mapping[str, Any]) -> ClientSums:
    own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return ClientSums.from_arrays(own)


def traffic(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What rounds sent and received: in all, by kind of round, and of the busiest client."""
    kinds: dict[str, dict[str, int]] = {}
    clients: dict[str, int] = {}
    for one in rounds:
        own = kinds.setdefault(one["kind"], {"rounds": 0, "sent_bytes": 0, "received_bytes": 0})
        own["rounds"] += 1
        for way in ("sent_bytes", "received_bytes"):
            own[way] += sum(one[way].values())
            for client, count in one[way].items():
                clients[client] = clients.get(client, 0) + count
    return {
        "sent_bytes": sum(k["sent_bytes"] for k in kinds.values()),
        "received_bytes": sum(k["received_bytes"] for k in kinds.values()),
        "kinds": kinds,
        "most_bytes_of_a_client": max(clients.values(), default=0),
        "bytes_by_client": clients,
    }
