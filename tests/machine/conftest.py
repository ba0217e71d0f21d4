"""A lock of its own for every test."""

from measuring import own_lock

__all__ = ["own_lock"]
