"""How commands show progress and answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autocompress.machine.output import answer

if TYPE_CHECKING:
    from rich.console import Console

    from autocompress.report.display import Display


def display(quiet: bool) -> Display:
    """The progress of a command, to be entered; nothing of it for machines."""
    from autocompress.report.display import Display

    return Display(quiet)


def printed(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One object for machines, or something readable for people."""
    if as_json:
        answer(json.dumps(data))
        return
    from autocompress.report.display import console

    show(console())
