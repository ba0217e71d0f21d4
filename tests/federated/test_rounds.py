"""Rounds with clients that leave, are late, or answer with what cannot be merged; and resuming."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.federated.described import checked, describe, made_up
from autocompress.federated.journal import RoundJournal, traffic
from autocompress.federated.messages import Request, Unanswered, pack, unpack
from autocompress.federated.rounds import RoundFailed, Rounds
from autocompress.task.data import Data, Split

MODEL = ("architecture", "weights")
Reply = Callable[[int, dict[str, Any], dict[str, Any]], bytes | str | None]


def good(client: int, head: dict[str, Any], arrays: dict[str, Any]) -> bytes:
    """What an honest client answers: its number."""
    told = {"key": head["key"], "model": list(MODEL)}
    return pack(told, {"sum.x": np.array([float(client), 1.0])})


def changed(**about: Any) -> Reply:
    def reply(client: int, head: dict[str, Any], arrays: dict[str, Any]) -> bytes:
        told = {"key": head["key"], "model": list(MODEL), **about}
        return pack(told, {"sum.x": np.array([float(client), 1.0])})

    return reply


def holding(**arrays: Any) -> Reply:
    def reply(client: int, head: dict[str, Any], given: dict[str, Any]) -> bytes:
        told = {"key": head["key"], "model": list(MODEL)}
        return pack(told, {f"sum.{n}": a for n, a in arrays.items()})

    return reply


class Clients:
    """A transport over functions; counts who was asked."""

    def __init__(self, replies: dict[int, Reply]) -> None:
        self.replies = replies
        self.asked: list[int] = []
        self.answers: deque[tuple[int, bytes | Unanswered]] = deque()
        self.most = 0

    def clients(self) -> list[int]:
        return sorted(self.replies)

    def push(self, client: int, message: bytes) -> None:
        self.asked.append(client)
        head, arrays = unpack(message)
        reply = self.replies[client](client, head, arrays)
        if isinstance(reply, str):
            reply = Unanswered(head["key"], reply)
        if reply is not None:
            self.answers.append((client, reply))
        self.most = max(self.most, len(self.answers))

    def pull(self, seconds: float) -> tuple[int, bytes | Unanswered] | None:
        return self.answers.popleft() if self.answers else None


def rounds(folder: Path, clients: Clients, **more: Any) -> Rounds:
    return Rounds(clients, RoundJournal(folder), MODEL, timeout_s=0.3, **more)


ASKED = Request("count", {"x": (2,)})


def test_a_round_adds_up_and_is_written_down(tmp_path: Path) -> None:
    clients = Clients(dict.fromkeys(range(1, 6), good))
    found = rounds(tmp_path, clients).ask(ASKED)
    assert found.sums["x"].tolist() == [15.0, 5.0]
    assert found.clients == (1, 2, 3, 4, 5)
    (line,) = RoundJournal(tmp_path).rounds()
    assert line["kind"] == "count"
    size = len(good(1, {"key": ASKED.key}, {}))
    assert line["received_bytes"] == {str(c): size for c in range(1, 6)}
    assert traffic([line])["received_bytes"] == 5 * size


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda *_: None, "no answer within 0.3 s"),
        (lambda *_: "the node left", "the node left"),
        (changed(model=["architecture", "other"]), "another model"),
        (changed(problem="no samples"), "no samples"),
        (holding(x=np.array([np.nan, 1.0])), "not finite"),
        (holding(x=np.array([1.0])), "shape"),
        (holding(y=np.array([1.0, 1.0])), "missing"),
        (lambda *_: b"no message", "cannot be read"),
    ],
    ids=["silent", "left", "model", "problem", "nan", "shape", "name", "garbage"],
)
def test_a_client_that_fails_is_left_out_with_the_reason(
    tmp_path: Path, reply: Reply, reason: str
) -> None:
    clients = Clients({1: good, 2: reply, 3: good})
    found = rounds(tmp_path, clients).ask(ASKED)
    assert found.sums["x"].tolist() == [4.0, 2.0]
    assert found.clients == (1, 3)
    assert reason in found.left[2]
    assert reason in RoundJournal(tmp_path).rounds()[0]["left"]["2"]


def test_too_few_fail_the_round_with_the_count(tmp_path: Path) -> None:
    clients = Clients({1: good, 2: lambda *_: "gone", 3: lambda *_: "gone"})
    with pytest.raises(RoundFailed, match=r"heard 1 of 3 clients and needs 2.*clients 2, 3: gone"):
        rounds(tmp_path, clients, least=0.5).ask(ASKED)
    assert RoundJournal(tmp_path).rounds() == []
    # they come back: who was heard is not asked again
    back = Clients(dict.fromkeys((1, 2, 3), good))
    found = rounds(tmp_path, back, least=0.5).ask(ASKED)
    assert found.sums["x"].tolist() == [6.0, 3.0]
    assert back.asked == [2, 3]


@pytest.mark.parametrize(
    "late", [good(2, {"key": "an earlier one"}, {}), Unanswered("an earlier one", "the node left")]
)
def test_an_answer_to_an_earlier_round_does_not_count_in_this_one(
    tmp_path: Path, late: bytes | Unanswered
) -> None:
    clients = Clients({1: good, 2: good})
    clients.answers.append((2, late))
    found = rounds(tmp_path, clients).ask(ASKED)
    assert found.sums["x"].tolist() == [3.0, 2.0]
    assert found.left == {}


def test_an_excluded_client_is_not_asked_and_counts_as_missing(tmp_path: Path) -> None:
    clients = Clients({1: good, 2: good, 3: good})
    own = rounds(tmp_path, clients, excluded={2: "its inputs have another form"})
    found = own.ask(ASKED)
    assert clients.asked == [1, 3]
    assert found.left == {2: "its inputs have another form"}
    with pytest.raises(RoundFailed, match="heard 2 of 3 clients and needs 3"):
        rounds(tmp_path / "all", clients, excluded=own.excluded, least=1.0).ask(ASKED)


def test_a_killed_server_does_not_ask_again_for_what_it_has(tmp_path: Path) -> None:
    """It dies in the middle of a round, after its journal was written down."""

    class Killed(BaseException):
        pass

    def die(*_: Any) -> bytes:
        raise Killed

    first = Clients({**dict.fromkeys(range(40), good), 40: die})
    with pytest.raises(Killed):
        rounds(tmp_path, first, at_once=1).ask(ASKED)
    second = Clients(dict.fromkeys(range(41), good))
    found = rounds(tmp_path, second, at_once=1).ask(ASKED)
    assert found.sums["x"].tolist() == [sum(range(41)), 41.0]
    assert second.asked == list(range(32, 41))  # 32 answers were written down
    third = Clients({0: die})
    assert rounds(tmp_path, third).ask(ASKED).sums["x"].tolist() == [sum(range(41)), 41.0]
    assert third.asked == []


def test_a_line_that_a_crash_cut_off_does_not_swallow_the_next(tmp_path: Path) -> None:
    clients = Clients({1: good})
    own = rounds(tmp_path, clients)
    own.ask(ASKED)
    with own.journal.path.open("a") as file:
        file.write('{"round": 2, "kin')
    own.ask(Request("count", {"x": (2,)}, {"again": True}))
    assert [one["args"] if "args" in one else one["kind"] for one in own.journal.rounds()] == [
        "count",
        "count",
    ]


def test_what_is_sent_once_is_sent_once_and_again_where_it_was_lost(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    lost = [False]

    def keeping(client: int, head: dict[str, Any], arrays: dict[str, Any]) -> bytes:
        seen.append({n for n in arrays if n.startswith("blob.")})
        if lost[0] and not seen[-1]:
            return pack({"key": head["key"], "model": list(MODEL), "missing": head["blobs"]}, {})
        return good(client, head, arrays)

    own = rounds(tmp_path, Clients({1: keeping}))
    blobs = {"bank": b"large"}
    for number in range(2):
        own.ask(Request("count", {"x": (2,)}, {"n": number}, blobs=blobs))
    assert seen == [{"blob.bank"}, set()]
    lost[0] = True
    own.ask(Request("count", {"x": (2,)}, {"n": 2}, blobs=blobs))
    assert seen[2:] == [set(), {"blob.bank"}]


def test_a_client_that_never_keeps_what_it_is_sent_is_left_out(tmp_path: Path) -> None:
    lacking = Clients({1: good, 2: changed(missing=["bank"]), 3: good})
    found = rounds(tmp_path, lacking).ask(Request("count", {"x": (2,)}, blobs={"bank": b"large"}))
    assert found.clients == (1, 3)
    assert "does not keep" in found.left[2]
    assert lacking.asked.count(2) == 2


TENSOR = {"shape": [3, 8, 8], "dtype": "float32", "mean": 0.0, "spread": 1.0, "most": 3.0}
LABELS = {"shape": [], "dtype": "int64", "mean": 0.0, "spread": 1.0, "most": 9.0}
ABOUT = {"inputs": TENSOR, "targets": LABELS, "classes": 10, "samples": 7}
ABOUT |= {"name": "own", "fingerprint": "abc"}


@pytest.mark.parametrize(
    "about",
    [
        None,
        [1],
        {**ABOUT, "inputs": {**TENSOR, "dtype": "load"}},
        {**ABOUT, "inputs": {**TENSOR, "dtype": ["float32"]}},
        {**ABOUT, "inputs": {**TENSOR, "shape": [1_000_000_000]}},
        {**ABOUT, "inputs": {**TENSOR, "shape": [5000, 5000]}},
        {**ABOUT, "inputs": {**TENSOR, "shape": [-1]}},
        {**ABOUT, "inputs": {"sequence": [TENSOR, {**TENSOR, "mean": float("nan")}]}},
        {**ABOUT, "inputs": {"mapping": [TENSOR]}},
        {**ABOUT, "targets": {**LABELS, "most": 1e300}},
        {**ABOUT, "targets": {**LABELS, "most": -1}},
        {**ABOUT, "classes": "many"},
        {**ABOUT, "samples": True},
    ],
)
def test_samples_that_cannot_be_are_left_out_with_the_reason(tmp_path: Path, about: Any) -> None:
    clients = Clients({1: changed(about=ABOUT), 2: changed(about=about), 3: changed(about=ABOUT)})
    found = rounds(tmp_path, clients).ask(Request("describe", {"x": (2,)}))
    assert found.clients == (1, 3)
    assert set(found.about) == {1, 3}
    assert "describe" in found.left[2] or "whole numbers" in found.left[2]


def test_every_kind_of_samples_can_be_described() -> None:
    inputs = {
        "a": torch.randn(5, 3, 4),
        "b": [torch.zeros(5, dtype=torch.bool), torch.ones(5, 2).half()],
    }
    split = Split(inputs, torch.arange(5))
    told = json.loads(json.dumps(describe(Data(split, split, split))))
    assert made_up({0: checked(told)}).train.inputs(2)["a"].shape == (2, 3, 4)


def test_no_more_clients_are_asked_at_once_than_allowed(tmp_path: Path) -> None:
    clients = Clients(dict.fromkeys(range(50), good))
    found = rounds(tmp_path, clients, at_once=4).ask(ASKED)
    assert len(found.clients) == 50
    assert clients.most <= 4


def test_other_questions_have_other_keys() -> None:
    base = Request("count", {"x": (2,)}, {"a": 1}, {"w": np.zeros(2)})
    others = [
        Request("other", {"x": (2,)}, {"a": 1}, {"w": np.zeros(2)}),
        Request("count", {"x": (2,)}, {"a": 2}, {"w": np.zeros(2)}),
        Request("count", {"x": (2,)}, {"a": 1}, {"w": np.ones(2)}),
        Request("count", {"x": (2,)}, {"a": 1}, {"w": np.zeros(2)}, {"blob": b""}),
    ]
    assert len({base.key, *(one.key for one in others)}) == 5


def test_a_message_that_is_none_is_refused() -> None:
    lists = pack([1], {})  # type: ignore[arg-type]  # no mapping, as a stranger may send
    for bad in (b"", b"\x00" * 8, b"x" * 100, lists):
        with pytest.raises(InputError, match="cannot be read"):
            unpack(bad)
