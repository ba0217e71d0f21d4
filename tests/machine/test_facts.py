"""Cores that a container's quota leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from autocompress.machine import facts

CASES = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "two cores": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
    "half a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "of a group above": (
        "0::/a/b\n",
        {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"},
        1.5,
    ),
    "the least of several": (
        "0::/a/b\n",
        {"a/cpu.max": "150000 100000", "a/b/cpu.max": "100000 100000"},
        1.0,
    ),
    "version 1": (
        "5:memory:/x\n4:cpu,cpuacct:/x\n",
        {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, seen from the inside": (
        "4:cpu,cpuacct:/docker/0123\n",
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "version 1, no limit": (
        "4:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "cut short": ("0::/a\nx\n", {"a/cpu.max": "1", "cpu.max": ""}, None),
    "nothing there": ("", {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_quota_of_control_groups(name: str, tmp_path: Path) -> None:
    listed, files, expected = CASES[name]
    (tmp_path / "groups").write_text(listed)
    for place, text in files.items():
        (tmp_path / "mounted" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / place).write_text(text)
    found = facts._quota(tmp_path / "groups", tmp_path / "mounted")
    assert found == (float(sys.maxsize) if expected is None else expected)


def test_usable_cores_keep_to_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "groups").write_text("0::/\n")
    monkeypatch.setattr(facts, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(facts, "_MOUNTED", tmp_path)
    monkeypatch.setattr(facts, "cores", lambda: set(range(64)))
    for quota, cores in (("50000", 1), ("250000", 3), ("max", 64), ("99900000", 64)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert facts.usable_cores() == cores
