"""Whether the database of an MLflow store answers."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from autocompress.errors import AutocompressError

#: of servers whose URL names a host; others (SQL Server) may name what their driver looks up
_PORTS = {"postgresql": 5432, "mysql": 3306}
_DATABASE_S = 5.0


def check_database(uri: str) -> None:
    """See that a database server answers at all: MLflow would try for minutes.

    Raises:
        AutocompressError: it does not.
    """
    parts = urlsplit(uri)
    port = _PORTS.get(parts.scheme.partition("+")[0])
    if port is None or parts.hostname is None or "," in parts.netloc:
        return  # a file, a local socket, or several hosts, of which the driver takes one
    place = parts.hostname, parts.port or port
    try:
        socket.create_connection(place, timeout=_DATABASE_S).close()
    except OSError as error:
        raise AutocompressError(
            f"No database answers at {place[0]}:{place[1]} ({error}). Start it, or give another "
            "address with --uri."
        ) from None
