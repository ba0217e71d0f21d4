"""Where a server can listen."""

from __future__ import annotations

import errno
import socket

from autocompress.errors import InputError

_PORTS = 100
"""So many from the asked one on are tried."""


def free_port(host: str, port: int) -> int:
    """The asked port, or the next one that is free; any for 0.

    Raises:
        InputError: nothing can listen there.
    """
    for candidate in range(port, min(port + _PORTS, 65536)) if port else [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                failed = error.strerror
                if error.errno == errno.EADDRINUSE:
                    continue
                break
            return int(probe.getsockname()[1])
    raise InputError(
        f"Cannot listen on {host}:{port} ({failed}). Choose another --host or --port, or --port 0 "
        "for any free one."
    )
