"""The ``ServerApp``: carries messages between a study, in another process, and Flower's nodes.

It decides nothing: which clients are asked what, and what becomes of their answers, the study
knows (``federated.rounds``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from autocompress.flower.client_app import body, carrying
from autocompress.flower.relay import KEY, PLACE, SOCKET

TYPES = {"recover": "train.recover", "evaluate": "evaluate"}
"""Kind of round to Flower's type of message; of the others it is a query."""
_HELLO_S = 60.0
app = ServerApp()


class Carrier:
    """Carries messages until the study says that it is over.

    Args:
        grid: reaches the nodes.
        study: the other process.
    """

    def __init__(self, grid: Grid, study: Connection[Any, Any]) -> None:
        self.grid, self.study = grid, study
        self.nodes: dict[int, int] = {}
        self.pending: dict[str, tuple[int, str]] = {}

    def run(self) -> None:
        """Until the study closes the connection, or says so."""
        while True:
            if self.study.poll(0.02 if self.pending else 0.2):
                try:
                    asked = json.loads(self.study.recv_bytes())
                except EOFError:
                    return
                if asked["do"] == "close":
                    return
                OPERATIONS[asked["do"]](self, asked)
            self._pull()

    def tell_clients(self, asked: dict[str, Any]) -> None:
        """Tell the numbers of the clients that can be reached now; new nodes are asked theirs."""
        nodes = set(self.grid.get_node_ids())
        new = nodes - set(self.nodes.values())
        sent = [Message(RecordDict({"hello": ConfigRecord()}), node, "query.hello") for node in new]
        for reply in self.grid.send_and_receive(sent, timeout=_HELLO_S) if sent else ():
            if not reply.has_error():
                number = reply.content["client"]["number"]
                self.nodes[int(number)] = reply.metadata.src_node_id
        self.nodes = {number: node for number, node in self.nodes.items() if node in nodes}
        self._tell({"clients": sorted(self.nodes)})

    def push(self, asked: dict[str, Any]) -> None:
        """Send a message to one client."""
        message = self.study.recv_bytes()
        number, kind = asked["client"], asked["kind"]
        node = self.nodes.get(number)
        if node is None:
            self._tell({"client": number, "key": asked["key"], "error": "it has left"})
            return
        sent = Message(carrying(message), node, TYPES.get(kind, f"query.{kind}"), ttl=asked["ttl"])
        (name,) = self.grid.push_messages([sent])
        self.pending[name] = (number, asked["key"])

    def _pull(self) -> None:
        if not self.pending:
            return
        for reply in self.grid.pull_messages(list(self.pending)):
            pending = self.pending.pop(reply.metadata.reply_to_message_id, None)
            if pending is None:
                continue
            number, key = pending
            if reply.has_error():
                self._tell({"client": number, "key": key, "error": str(reply.error.reason)})
            else:
                self._tell({"client": number}, body(reply.content))

    def _tell(self, head: dict[str, Any], message: bytes | None = None) -> None:
        self.study.send_bytes(json.dumps(head).encode())
        if message is not None:
            self.study.send_bytes(message)


OPERATIONS: dict[str, Callable[[Carrier, dict[str, Any]], None]] = {
    "clients": Carrier.tell_clients,
    "push": Carrier.push,
}


@app.main()  # type: ignore[untyped-decorator,unused-ignore]  # Flower is elsewhere
def main(grid: Grid, context: Context) -> None:
    """Connect to the study, and carry."""
    place = Path(str(context.run_config.get("place") or os.environ[PLACE]))
    with Client(str(place / SOCKET), authkey=(place / KEY).read_bytes()) as study:
        Carrier(grid, study).run()
