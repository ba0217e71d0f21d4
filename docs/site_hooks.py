"""What pages link to outside this folder, for the site: the examples become pages of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_EXAMPLES = Path(__file__).parent.parent / "examples"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each example that holds its code."""
    from mkdocs.structure.files import File

    for path in sorted(_EXAMPLES.glob("*.py")):
        code = path.read_text(encoding="utf-8")
        page = f"# {path.name}\n\n```python\n{code}```\n"
        found = File.generated(config, f"examples/{path.stem}.md", content=page)
        found.inclusion = type(found.inclusion).NOT_IN_NAV
        files.append(found)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to an example's file lead to its page."""
    for path in _EXAMPLES.glob("*.py"):
        markdown = markdown.replace(f"](../examples/{path.name})", f"](examples/{path.stem}.md)")
    return markdown
