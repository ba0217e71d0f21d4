"""How commands answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from autocompress.machine.output import answer
from autocompress.report.display import console


def printed(data: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """One object for machines, or something readable for people."""
    if as_json:
        answer(json.dumps(data))
    else:
        show(console())
