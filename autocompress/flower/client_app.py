"""The ``ClientApp``: answers Flower's messages with what a client says of its data."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import Array
from flwr.clientapp import ClientApp

from autocompress.errors import explained
from autocompress.federated.client import KINDS, Client
from autocompress.federated.messages import pack, unpack
from autocompress.federated.study import FOLDER, Simulated
from autocompress.flower.start import STUDY
from autocompress.run.assembly import assemble
from autocompress.run.study import load_study
from autocompress.workloads.cache import cache_folder

app = ClientApp()


@cache
def _simulated(study: str) -> Simulated:
    """All clients of a simulation; the data are read once in each process."""
    return Simulated(load_study(study))


@cache
def _own(study: str) -> Client:
    """The client of a study whose data are its own."""
    parts = assemble(load_study(study), cache_folder() / FOLDER)
    return Client(parts, parts.data, cache_folder() / FOLDER)


def client_of(context: Context) -> Client:
    """The client that a node stands for.

    A node names its study in its configuration (``study="here.yaml"``); one of a simulation has a
    part of the simulated study's data.
    """
    named = context.node_config.get("study")
    if named is not None:
        return _own(str(Path(str(named)).expanduser()))
    return _simulated(os.environ[STUDY]).client(int(context.node_config["partition-id"]))


def body(content: RecordDict) -> bytes:
    """The message of ours that one of Flower's carries."""
    return np.asarray(content["message"]["bytes"].numpy(), np.uint8).tobytes()


def carrying(message: bytes) -> RecordDict:
    """Content of Flower's with a message of ours."""
    array = Array(np.frombuffer(message, np.uint8))
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def answer(message: Message, context: Context) -> Message:
    """Answer one message."""
    asked = body(message.content)
    try:
        told = client_of(context).answer(asked)
    except Exception as error:  # its study, model or data cannot be read
        head, _ = unpack(asked)
        problem = explained(error)
        told = pack({"key": head["key"], "model": head["model"], "problem": problem}, {})
    return Message(carrying(told), reply_to=message)


def hello(message: Message, context: Context) -> Message:
    """Say which client this is: the same number after a restart."""
    number = context.node_config.get("partition-id", context.node_id)
    return Message(RecordDict({"client": ConfigRecord({"number": int(number)})}), reply_to=message)


app.query("hello")(hello)
app.train("recover")(answer)
app.evaluate()(answer)
for kind in sorted(set(KINDS) - {"recover", "evaluate"}):
    app.query(kind)(answer)
