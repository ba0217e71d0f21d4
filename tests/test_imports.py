"""The rooms: who may import whom, and that importing the package stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autocompress"

_BASE = {"errors", "policy", "results", "machine"}
_MODEL = {*_BASE, "task", "model"}
_BUILD = {*_MODEL, "techniques", "recover", "exporters", "build"}
_TRACK = {*_BASE, "controller", "track"}
ALLOWED = {
    "errors": set(),
    "machine": {"errors", "machine"},
    "policy": {"errors", "policy"},
    "results": _BASE,
    "cascade": {"errors", "machine", "cascade"},
    "runtime": {"errors", "cascade"},
    "task": {*_BASE, "task"},
    "model": _MODEL,
    "techniques": {*_MODEL, "techniques"},
    "recover": {*_MODEL, "techniques", "recover"},
    "exporters": {*_MODEL, "cascade", "techniques", "exporters"},
    "build": _BUILD,
    "targets": {*_MODEL, "techniques", "exporters", "targets"},
    "quality": {*_BUILD, "targets", "quality"},
    "measure": {*_BUILD, "targets", "quality", "measure"},
    "estimate": {*_BUILD, "targets", "measure", "estimate"},
    "controller": {*_BASE, "controller"},
    "execute": {*_BASE, "controller", "execute"},
    "track": _TRACK,
    "report": {*_TRACK, "report"},
    "mlflow": {*_TRACK, "report", "mlflow"},
    "workloads": {*_BUILD, "targets", "measure", "workloads"},
}
# a study as a library: it puts the rooms together, and knows no command line
ALLOWED["run"] = {*ALLOWED, "run"}
ALLOWED["federated"] = {*ALLOWED, "federated"}
ALLOWED["flower"] = {*ALLOWED, "flower"}
ALLOWED["api"] = ALLOWED["run"]
ALLOWED["api_models"] = {*ALLOWED["api"], "api"}
TOP = {"commands", "cli", "testing", "__main__", "__init__"}
"""What nothing else imports."""
ONLY_IN = {
    "optuna": {
        "controller/optuna_study.py",
        "controller/shared_trials.py",
        "run/dashboard.py",
    },
    "ray": {"execute/cluster.py", "execute/ray_actors.py", "execute/ray_tune.py"},
    "mlflow": {"mlflow/store.py", "mlflow/artifacts.py", "mlflow/views.py"},
    "flwr": {"flower/client_app.py", "flower/server_app.py", "flower/simulate.py"},
}
TALKS = {"commands", "report", "cli"}
"""Where people are shown things; a library logs."""
PROGRAMS = {"estimate/device_runner.py", "estimate/serving.py", "measure/memory.py"}
"""Programs of their own, run in another process or on a device: they answer by printing."""
NO_TORCH = (
    *("machine", "policy", "results", "cascade", "controller", "execute", "track", "report"),
    "mlflow",
)
FOR_TYPES = {
    "policy/technique.py": {"measure", "model", "targets", "techniques"},
    "techniques/builtin/prune.py": {"measure"},
    "techniques/builtin/blocks.py": {"measure"},
    "techniques/builtin/quantize.py": {"measure", "targets"},
    "techniques/builtin/sparsify.py": {"targets"},
}
"""What a file names only for the type checker: the hooks of a technique are about rooms above."""
PLAIN_TECHNIQUES = "techniques/builtin/"
BY_NAME = {"policy/registry.py": {"techniques"}}
"""The registry in `policy` loads our own techniques by name, as it loads those of other packages,
so that a search space knows them. They may not cost it torch, and need no policy to be there."""


def _imports(path: Path) -> set[str]:
    """Every dotted name that a file imports, at any depth, or names as `package.module:object` to
    load it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"(autocompress(?:\.\w+)+):\w+", node.value)
            names |= {found[1]} if found else set()
    return names


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_stands_below_it(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    imported = _imports(path)
    ours = {n.split(".")[1] for n in imported if n.startswith("autocompress.")}
    if room in ALLOWED:
        may = FOR_TYPES.get(str(relative), set()) | BY_NAME.get(str(relative), set())
        above = ours - ALLOWED[room] - may
        assert not above, f"{relative} imports {sorted(above)}"
    for library, places in ONLY_IN.items():
        if any(n == library or n.startswith(library + ".") for n in imported):
            assert str(relative) in places, f"{relative} imports {library}"
    if room not in TALKS:
        assert not any(n.split(".")[0] == "rich" for n in imported), relative
    if room in NO_TORCH or str(relative).startswith(PLAIN_TECHNIQUES):
        assert not any(n.split(".")[0] in ("torch", "torchvision") for n in imported), relative


@pytest.mark.parametrize("file", FOR_TYPES)
def test_what_is_named_for_types_is_not_loaded(file: str) -> None:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    loaded = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [n for n in loaded if n.split(".")[1:2] and n.split(".")[1] in FOR_TYPES[file]]


def test_techniques_are_loaded_by_name_without_what_loads_them() -> None:
    """In a process of their own: a policy is built from them, so they need none to be there."""
    names = sorted(n for n in _imports(PACKAGE / "policy/registry.py") if ".builtin." in n)
    assert len(names) == 5
    above = ["torch", "autocompress.policy.policy", "autocompress.policy.registry"]
    code = (
        "import importlib, sys, types\n"
        "package = sys.modules['autocompress'] = types.ModuleType('autocompress')\n"
        f"package.__path__ = [{str(PACKAGE)!r}]  # without what the package itself imports\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([m for m in {above!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["techniques", "build"])
def test_what_makes_models_names_no_runtime(room: str) -> None:
    """A target states what its files hold and its kernels can; texts say that, not who."""
    runtime = re.compile(r"runtime: |" + "|".join(set(read_targets()) - {"torch"}))
    for path in sorted((PACKAGE / room).rglob("*.py")):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = [n for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [n.lineno for n in texts if runtime.search(n.value)], path


def read_targets() -> dict[str, str]:
    """Names of our runtimes, and where they stand."""
    tree = ast.parse((PACKAGE / "targets/registry.py").read_text(encoding="utf-8"))
    places = (n for n in tree.body if isinstance(n, ast.Assign) and "_PLACES" in ast.unparse(n))
    found: dict[str, str] = ast.literal_eval(next(places).value)
    return found


def test_the_rule_knows_every_room() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith("_")}
    modules = {p.stem for p in PACKAGE.glob("*.py")}
    assert rooms | modules == set(ALLOWED) | TOP


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_library_logs_and_does_not_print(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if relative.parts[0].removesuffix(".py") in TALKS or str(relative) in PROGRAMS:
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    printing = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not printing, f"{relative} prints in lines {printing}"


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=str)
def test_benchmarks_use_the_library(path: Path) -> None:
    above = {f"autocompress.{name}" for name in TOP}
    assert not any(n in above or n.startswith("autocompress.commands.") for n in _imports(path))


HEAVY = ["numpy", "torch", "ray", "mlflow", "optuna", "onnxruntime", "torchvision", "sklearn"]
NOT_FOR_HELP = [
    *HEAVY,
    "pydantic",
    "yaml",
    "jinja2",
    "plotly",
    "scipy",
    "filelock",
    "urllib.request",
]
"""Nor anything of ours but the commands' names, options and first words."""


@pytest.mark.parametrize("module", ["autocompress", "autocompress.policy.space_config"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("asked", [["--help"], ["search", "--help"], ["bench", "--help"]], ids=str)
def test_help_loads_no_more_than_it_shows(asked: list[str]) -> None:
    """So that it is there at once: the libraries, and our own modules, which are few."""
    code = (
        f"import sys; sys.argv = ['autocompress', *{asked!r}]\n"
        "from autocompress.cli import main\n"
        "try: main()\n"
        "finally: sys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    loaded = set(done.stderr.split())
    typers = {"pydantic"} if asked[1:] else set()  # which it asks for the kinds of options
    assert not loaded & set(NOT_FOR_HELP) - typers
    ours = {name for name in loaded if name.startswith("autocompress.")}
    assert len(ours) < 25, sorted(ours)


ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_docs_name_the_files_that_import_a_library() -> None:
    """Exactly those that do."""
    told = dict(re.findall(r"^\| `(\w+)` \| (`.+\.py`) \|$", ARCHITECTURE, re.MULTILINE))
    files = {name: set(re.findall(r"`([^`]+)`", row)) for name, row in told.items()}
    found: dict[str, set[str]] = {library: set() for library in ONLY_IN}
    for path in _files():
        for library in {name.split(".")[0] for name in _imports(path)} & set(found):
            found[library].add(str(path.relative_to(PACKAGE)))
    assert files == found


def test_the_docs_name_the_rooms_without_torch() -> None:
    (told,) = re.findall(r"^These rooms load no torch: (.+)\.$", ARCHITECTURE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", told) == list(NO_TORCH)


def test_the_docs_list_the_rooms_from_the_bottom_to_the_top() -> None:
    """A room imports what stands above it in the list."""
    rows = re.findall(r"^\| (`.+?) \| [^`]", ARCHITECTURE, re.MULTILINE)
    rooms = [re.findall(r"`(\w+)[/.][^`]*`", row) for row in rows]
    below: set[str] = set()
    for row in rooms:
        below |= set(row)
        for room in set(row) - TOP:
            assert ALLOWED[room] <= below, room
    assert below | {"__init__", "__main__"} == set(ALLOWED) | TOP


def test_every_public_name_is_found_where_it_is_defined() -> None:
    code = (
        "import autocompress as ac\n"
        "for name in ac.__all__: assert getattr(ac, name) is not None, name\n"
        "assert set(ac._MODULE_OF) | {'__version__'} == set(ac.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
