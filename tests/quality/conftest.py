"""The small network that the tests of this room share."""

from measuring import exported, inventory, network

__all__ = ["exported", "inventory", "network"]
