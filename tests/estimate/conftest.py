"""The small network, its space and its plan, that the tests of this room share."""

from measuring import exported, inventory, network, own_lock, plan, space

__all__ = ["exported", "inventory", "network", "own_lock", "plan", "space"]
