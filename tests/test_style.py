"""How the code is laid out: lengths, circles of imports, and late imports without a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "autocompress"

MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_LINES_THAT_MEASURE = 3800
"""Of `measure` and `targets` together, but what is named below: one mechanism times, and one way
reads every profile."""
FURTHER_RUNTIMES = {"litert.py", "onnx_web.py"}
"""Files of `targets` that do not count there: each is a runtime more, behind the same contract."""
FURTHER_COSTS = {"energy.py", "extras.py", "joules.py", "peak.py", "there.py"}
"""Files of `measure` that do not count there: costs and places that only some studies ask for."""
HEAVY = frozenset(
    (
        *("numpy", "torch", "torchvision", "tensorly", "fvcore", "scipy", "sklearn", "plotly"),
        *(
            "onnx",
            "onnxruntime",
            "openvino",
            "executorch",
            "ai_edge_litert",
            "optuna",
            "ray",
            "mlflow",
            "sqlalchemy",
        ),
    )
)
"""Libraries that take long to load; what needs them may be imported late. Even numpy takes a third
of the time in which the command line starts."""


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
OTHERS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: no bodies of functions, nothing for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_import(child)


def _names(node: ast.AST) -> set[str]:
    """Modules that a statement imports, each by its longest name that is a module."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        return {name if name in MODULES else node.module for name in inner}
    return set()


def _by_name(tree: ast.AST) -> set[str]:
    """Our modules that a file names as ``package.module:object``, to load what they hold."""
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    named = {text.partition(":")[0] for text in texts if isinstance(text, str) and ":" in text}
    return named & set(MODULES)


@cache
def _at_top(module: str) -> frozenset[str]:
    """What a module imports when it is imported, as its file says it."""
    return frozenset(name for node in _at_import(_tree(module)) for name in _names(node))


@cache
def _imported(module: str) -> frozenset[str]:
    """The same and what it loads by name: that may be at any time, so also while it is imported."""
    return _at_top(module) | _by_name(_tree(module))


@cache
def _heavy(
    module: str, *, surely: bool = False, libraries: frozenset[str] = HEAVY
) -> frozenset[str]:
    """Heavy libraries that importing a module may load, packages on the way included.

    The package itself is left out: it is there before any of its modules.

    Args:
        module: of ours.
        surely: only what it always loads.
        libraries: that count as heavy.
    """
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        if name in MODULES:
            above = {name.rpartition(".")[0]} - {"", PACKAGE.name}
            waiting |= ((_at_top if surely else _imported)(name) | above) - found
    return frozenset(name.split(".")[0] for name in found) & libraries


@cache
def _follows(module: str) -> frozenset[str]:
    """Our modules that a module reaches by its imports; itself only where there is a circle."""
    found: set[str] = set()
    waiting = set(_imported(module))
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in found:
            found.add(name)
            waiting |= _imported(name)
    return frozenset(found)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{module} has {lines} lines"
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            assert size <= MOST_FUNCTION_LINES, f"{module}:{node.lineno} {node.name}: {size} lines"


def test_measuring_stays_small() -> None:
    rooms = [p for p in MODULES.values() if p.parent.name in ("measure", "targets")]
    assert {p.name for p in rooms} >= FURTHER_RUNTIMES | FURTHER_COSTS
    rooms = [p for p in rooms if p.name not in FURTHER_RUNTIMES | FURTHER_COSTS]
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in rooms)
    assert lines <= MOST_LINES_THAT_MEASURE, f"{lines} lines"


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_tests_and_benchmarks_are_short(name: str) -> None:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_modules_do_not_import_each_other_in_a_circle(module: str) -> None:
    circle = {name for name in _follows(module) if module in _follows(name)}
    assert not circle, f"{module} is in a circle with {sorted(circle)}"


def test_what_registries_load_by_name_is_followed() -> None:
    ours = "autocompress.techniques.builtin.low_rank"
    assert ours in _imported("autocompress.policy.registry")
    assert "autocompress.techniques.factors" in _follows("autocompress.policy.registry")
    runtime = "autocompress.targets.onnx_runtime"
    assert runtime in _imported("autocompress.targets.registry")


OF_SEVERAL = {"Choice", "Member", "Network", "Operator", "Reader", "Result", "Workers"}
"""Classes whose name another room has for something else. No name may join them."""


def test_a_class_has_a_name_of_its_own() -> None:
    met: dict[str, list[str]] = {}
    for module in MODULES:
        for node in _tree(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                met.setdefault(node.name, []).append(module)
    several = {name: places for name, places in met.items() if len(places) > 1}
    assert several.keys() == OF_SEVERAL, several


def _needless(
    tree: ast.Module, loaded: frozenset[str], libraries: frozenset[str] = HEAVY
) -> list[str]:
    """Late imports of our own that spare no heavy library.

    Args:
        tree: of a module.
        loaded: heavy libraries that the module loads anyway.
        libraries: that count as heavy.
    """
    early = set(_at_import(tree))
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    types = {
        inner
        for guard in guards
        if "TYPE_CHECKING" in ast.unparse(guard.test)
        for inner in ast.walk(guard)
    }
    late = [n for n in ast.walk(tree) if n not in early and n not in types]
    return [
        f"line {node.lineno}: {name}"
        for node in late
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in sorted(_names(node))
        if name in MODULES and _heavy(name, libraries=libraries) <= loaded
    ]


FOR_HELP = {
    "cli",
    *(f"commands.{n}" for n in ("federating", "files", "printing", "runs", "studies")),
}
"""What ``--help`` loads, which has to be there at once."""
MORE_FOR_HELP = frozenset(("pydantic", "yaml", "filelock"))


@pytest.mark.parametrize("module", MODULES)
def test_late_imports_of_our_own_hide_a_heavy_library(module: str) -> None:
    libraries = HEAVY | (MORE_FOR_HELP if module.split(".", 1)[-1] in FOR_HELP else frozenset())
    loaded = _heavy(module, surely=True, libraries=libraries)
    needless = _needless(_tree(module), loaded, libraries)
    assert not needless, f"{module} imports late without need: {needless}"


@pytest.mark.parametrize(
    ("late", "loaded", "spares"),
    [
        ("policy.policy", "", False),
        ("model.cost", "", True),
        ("model.cost", "numpy", True),
        ("model.cost", "torch", False),
    ],
)
def test_a_late_import_that_spares_nothing_is_found(late: str, loaded: str, spares: bool) -> None:
    tree = ast.parse(f"def f():\n    import autocompress.{late}")
    assert bool(_needless(tree, frozenset(loaded.split()))) != spares


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    """pytest leaves out folders of some names, ``build`` among them, where it is not told."""
    unread = pytestconfig.getini("norecursedirs")
    folders = {
        part
        for path in (ROOT / "tests").rglob("test_*.py")
        for part in path.relative_to(ROOT / "tests").parts[:-1]
    }
    assert not [f for f in folders if any(fnmatch(f, pattern) for pattern in unread)]


def test_what_is_ignored_has_its_reason_beside_it() -> None:
    bare = re.compile(r"#\s*(type: ignore(\[[^\]]*\])?|noqa(: [A-Z0-9, ]+)?)\s*$", re.MULTILINE)
    places = [
        f"{path}:{text.count(chr(10), 0, found.start()) + 1}"
        for folder in ("autocompress", "tests", "benchmarks", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        for found in bare.finditer(text)
    ]
    assert not places
