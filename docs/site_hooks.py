"""What pages link to outside this folder: the site gets the examples as pages, and the reports of
runs that lie here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_EXAMPLES = _ROOT / "examples"
_GALLERY = "gallery.md"


def _reports() -> dict[str, Path]:
    """Name of a run to its report."""
    return {path.parent.name: path for path in sorted(_ROOT.glob("runs/*/report.html"))}


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each example that holds its code, and the reports as they are."""
    from mkdocs.structure.files import File

    for path in sorted(_EXAMPLES.glob("*.py")):
        code = path.read_text(encoding="utf-8")
        page = f"# {path.name}\n\n```python\n{code}```\n"
        found = File.generated(config, f"examples/{path.stem}.md", content=page)
        found.inclusion = type(found.inclusion).NOT_IN_NAV
        files.append(found)
    for name, path in _reports().items():
        files.append(File.generated(config, f"reports/{name}.html", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to an example's file lead to its page, and those of the gallery to reports."""
    if page.file.src_uri == _GALLERY:
        markdown += "".join(f"\n- [report of {name}](reports/{name}.html)" for name in _reports())
    for path in _EXAMPLES.glob("*.py"):
        markdown = markdown.replace(f"](../examples/{path.name})", f"](examples/{path.stem}.md)")
    return markdown
