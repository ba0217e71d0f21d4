"""Where servers listen."""

from __future__ import annotations

import socket

import pytest

from autocompress.errors import InputError
from autocompress.machine.ports import free_port


def test_of_a_taken_port_the_next_free_one_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        asked = taken.getsockname()[1]
        found = free_port("127.0.0.1", asked)
        assert asked < found < asked + 100
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", found))
    assert free_port("127.0.0.1", found) == found
    assert free_port("127.0.0.1", 0) > 0


def test_an_address_of_no_interface_here_is_bad_input() -> None:
    with pytest.raises(InputError, match="--host"):
        free_port("192.0.2.1", 5000)  # of a range that is kept for documentation
