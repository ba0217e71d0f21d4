"""Whether the database of an MLflow store answers."""

from __future__ import annotations

import socket

from autocompress.errors import AutocompressError

#: of servers whose URL names a host; others (SQL Server) may name what their driver looks up
_PORTS = {"postgresql": 5432, "mysql": 3306}
_DATABASE_S = 5.0
#: parts of a URL that name a place of their own
_ELSEWHERE = {"host", "unix_socket", "service"}


def check_database(uri: str) -> None:
    """See that a database server answers at all: MLflow would try for minutes.

    Raises:
        AutocompressError: it does not.
    """
    port = _PORTS.get(uri.partition(":")[0].partition("+")[0])
    if port is None:
        return
    from sqlalchemy.engine import make_url  # heavier than the whole command line

    url = make_url(uri)
    local = url.host == "localhost" and url.drivername.startswith("mysql")
    if not url.host or local or not _ELSEWHERE.isdisjoint(url.query):
        return  # a socket of this machine, or what its driver looks up
    place = url.host, url.port or port
    try:
        socket.create_connection(place, timeout=_DATABASE_S).close()
    except OSError as error:
        raise AutocompressError(
            f"No database answers at {place[0]}:{place[1]} ({error}). Start it, or give another "
            "address with --uri."
        ) from None
