"""The library of plots starts quickly, and is a whole script whatever form it came in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
import pytest
from plotly.offline import get_plotlyjs

from autocompress.report.html import write_report
from autocompress.report.library import drawing_library
from autocompress.track.folder import RunFolder


def test_only_what_the_page_draws_is_set_up(opened: Callable[..., Any], run: RunFolder) -> None:
    """And that is all the page needs: other tests look at its plots."""
    page = opened(write_report(run))
    kinds = page.evaluate("Object.keys(Plotly.PlotSchema.get().traces)")
    assert "scatter" in kinds
    if int(plotly.__version__.split(".")[0]) == 7:
        assert kinds == ["scatter"]


SCRIPT = """(function(root, factory) {
 root.made = factory();
} (typeof self !== "undefined" ? self : this, () => {
"use strict";var calls=[];%s
return Plotly;
}));
"""
LIST = ",".join(f"one{i}()" for i in range(40))


@pytest.mark.parametrize(
    "script",
    [
        "!function(t,e){t.Plotly=e()}(self,(function(){return 1}));",
        "",
        SCRIPT % "A.register([a(),b()]);",  # a few may be of the core
        SCRIPT % f"A.register([{LIST}]);B.register([{LIST}]);",  # which of them is not known
    ],
)
def test_a_bundle_of_another_form_keeps_what_it_sets_up(
    monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: script)
    assert drawing_library().count("register([") == script.count("register([")
    assert drawing_library().count("()") >= script.count("()")


def test_parentheses_are_balanced_as_they_were(
    opened: Callable[..., Any], run: RunFolder, tmp_path: Path
) -> None:
    """A browser reads the script as it came and as it is on the page: both are whole."""
    for script in (get_plotlyjs(), drawing_library()):
        path = tmp_path / "page.html"
        path.write_text(f"<script>{script}</script>", encoding="utf-8")
        assert opened(path, plots=False).evaluate("typeof Plotly.react") == "function"
