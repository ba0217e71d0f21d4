"""What is kept of the clients of a federated run, beside its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.track.folder import read_json
from autocompress.track.forms import FederatedForm


def clients_file(run: str | Path) -> Path:
    """Bytes of every client, who was left out, and what pooled data would have given."""
    return Path(run) / "federated.json"


def read_clients(run: str | Path) -> dict[str, Any]:
    """The same as it was written; nothing of a run whose data were at hand.

    Raises:
        InputError: the file is damaged.
    """
    return read_json(clients_file(run), "summary of the clients", FederatedForm) or {}
