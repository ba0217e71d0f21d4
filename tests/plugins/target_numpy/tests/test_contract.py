"""The target keeps to what autocompress asks of every target."""

from autocompress.testing.target import TargetContract


class TestNumpy(TargetContract):
    config = "numpy"
    threads = (1,)
