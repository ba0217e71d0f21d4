"""The small network, exported once, that the tests of this room share."""

from measuring import exported, inventory, network, own_lock, wide_file

__all__ = ["exported", "inventory", "network", "own_lock", "wide_file"]
