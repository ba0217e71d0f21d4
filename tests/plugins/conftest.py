"""Tests that belong to an example package run where it is installed; see ``test_plugins``."""

collect_ignore_glob = ["*/tests/*"]
