"""Every cell of the table in docs/models.md, measured on the network itself.

A cell that no longer says what is found is a failure; ``python tests/support/zoo.py`` prints the
rows as they are now.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import COLUMNS, ZOO, Row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def claimed() -> dict[str, dict[str, str]]:
    """The table's rows: network to column to cell."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] in ZOO:
            rows[cells[0]] = dict(zip(COLUMNS, cells[1:], strict=True))
    return rows


def test_the_table_has_every_network() -> None:
    assert list(claimed()) == list(ZOO)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ZOO)
def test_the_table_says_what_is_found(name: str, tmp_path: Path) -> None:
    if ZOO[name].package:
        pytest.importorskip(ZOO[name].package)
    assert Row(name).cells(tmp_path) == claimed()[name]


@pytest.mark.parametrize("name", [n for n, entry in ZOO.items() if entry.small])
def test_the_small_ones_of_the_table(name: str, tmp_path: Path) -> None:
    assert Row(name).cells(tmp_path) == claimed()[name]
