"""The library that draws the plots of a report, made ready to start quickly."""

from __future__ import annotations

import re

_KINDS = re.compile(r"\.register\(\[(?:\w+\(\),){30,}\w+\(\)\]\)")
"""Where a bundle sets up all kinds of traces but scatter, which its core holds."""
_LATER = re.compile(r"(typeof self[^,]*, )(\(\) => \{)(?=\s*\"use strict\")")
_END = re.compile(r"return Plotly;\s*\}(?=\)\);\s*$)")
"""The beginning and end of the function that is the library."""


def drawing_library() -> str:
    """Plotly's script, less what a page of scatter plots waits for in vain.

    A browser takes most of its time to a plot for reading the script. A version that is bundled in
    another way is left as it is.
    """
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    if len(_KINDS.findall(script)) == 1:
        script = _KINDS.sub(".register([])", script)
    if _LATER.search(script, 0, 2000) and _END.search(script):
        # in parentheses a function is compiled at once, not read to its end for errors before
        script = _LATER.sub(r"\1(\2", script, count=1)
        script = _END.sub(lambda found: f"{found[0]})", script)
    return script
