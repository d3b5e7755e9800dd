"""The shape of the package: imports point one way, modules stay short, and importing the command line is cheap."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import onnxprune

PACKAGE = Path(onnxprune.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LINE = (
    "model", "channels", "score", "plan", "surgery", "recover", "quantize", "validate", "report", "commands", "slim",
    "cli",
)  # fmt: skip
"""A room may import the rooms before it, and what ``SIDES`` allows."""

SIDES = {
    "errors": frozenset(),
    "arguments": frozenset({"errors"}),
    "ops": frozenset({"errors"}),
    "runtime": frozenset({"errors", "model"}),
    "data": frozenset({"errors", "runtime"}),
}
"""Rooms beside the line, with all the rooms that they may import."""

NEVER = {
    "surgery": {"runtime", "data"},
    "channels": {"runtime", "data"},
    "model": {"runtime", "data"},
}

EXCEPTIONS = {
    ("ops", "channels.facts"): "the words of the channel rules",
    ("ops", "channels.registry"): "where the channel rules are registered",
    ("model", "channels.facts"): "shape inference follows stored counts",
}
LAZY_EXCEPTIONS = {
    ("ops", "model.io"): "reads a stored tensor",
    ("commands", "slim"): "the recipe and the result",
}
HEAVY = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy", "rich", "jinja2", "matplotlib")


@dataclass(frozen=True)
class Import:
    """One import: ``target`` is the imported module, ``lazy`` whether it stands inside a function."""

    line: int
    target: str
    lazy: bool


def imports(source: str) -> Iterator[Import]:
    """Yields every import of a module, those inside functions and conditions too."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            whole = node.module == "onnxprune" or (PACKAGE.parent / str(node.module).replace(".", "/")).is_dir()
            names = [f"{node.module}.{alias.name}" if whole else str(node.module) for alias in node.names]
        else:
            continue
        yield from (Import(node.lineno, name, id(node) in inner) for name in names)


def room(module: str) -> str:
    """Returns the room of a module of the package, named without the package."""
    return module.split(".")[0]


def violation(own: str, found: Import) -> str | None:
    """Returns why a module of room ``own`` must not contain an import, or ``None``."""
    package, _, module = found.target.partition(".")
    if package == "onnxruntime" and own != "runtime":
        return "only runtime may import onnxruntime"
    if package != "onnxprune" or not module:
        return None
    other = room(module)
    if other == own or (own, module) in EXCEPTIONS:
        return None
    if any((own, known) in LAZY_EXCEPTIONS for known in (module, other)) and (found.lazy or own == "commands"):
        return None
    if own in SIDES:
        return None if other in SIDES[own] else f"{own} may import {sorted(SIDES[own])} only, not {module}"
    if other in NEVER.get(own, ()):
        return f"{own} may never import {other}"
    if other in SIDES or LINE.index(other) < LINE.index(own):
        return None
    return f"{own} comes before {other} and may not import {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in LINE or own in SIDES, f"the new room {own!r} needs a place in LINE or SIDES"
    wrong = {item.line: violation(own, item) for item in imports(path.read_text(encoding="utf-8"))}
    assert [f"line {line}: {why}" for line, why in wrong.items() if why] == []


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("plan", "from onnxprune.surgery.slice import apply"),
        ("plan", "def f():\n    from onnxprune.surgery.slice import apply"),
        ("ops", "from onnxprune.channels.groups import analyze"),
        ("ops", "from onnxprune.model.io import read_values"),
        ("surgery", "from onnxprune.runtime.session import Session"),
        ("surgery", "from onnxprune.data.samples import Samples"),
        ("runtime", "import onnxprune.channels.groups"),
        ("validate", "import onnxruntime as ort"),
        ("report", "from onnxprune import commands"),
        ("model", "from onnxprune.channels import groups"),
    ],
)
def test_wrong_imports_are_seen(own: str, source: str) -> None:
    assert [violation(own, item) for item in imports(source)] != [None]


@pytest.mark.parametrize(
    ("own", "source"),
    [
        ("plan", "from onnxprune.channels.groups import Channels"),
        ("ops", "from onnxprune.channels.facts import Tie"),
        ("ops", "def f():\n    from onnxprune.model.io import read_values"),
        ("validate", "from onnxprune.runtime.session import Session"),
        ("commands", "from onnxprune.slim import Recipe"),
        ("runtime", "import onnxruntime as ort"),
        ("cli", "from pathlib import Path"),
    ],
)
def test_right_imports_pass(own: str, source: str) -> None:
    assert [violation(own, item) for item in imports(source)] == [None]


def test_no_module_is_long() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("module", ["onnxprune", "onnxprune.cli", "onnxprune.slim"])
def test_starting_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_every_public_name_resolves() -> None:
    assert set(onnxprune.__all__) <= set(dir(onnxprune))
    assert [name for name in onnxprune.__all__ if not getattr(onnxprune, name).__doc__] == []
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        onnxprune.prune  # noqa: B018


def test_rooms_do_not_hide_public_names() -> None:
    """A room that is loaded late becomes an attribute of the package, over a function of the same name."""
    rooms = [f"onnxprune.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")]
    code = (
        f"import {', '.join(['onnxprune', *rooms])}\n"
        "import onnxprune.commands.slim\n"
        "print(*(name for name in onnxprune.__all__ if type(getattr(onnxprune, name)).__name__ == 'module'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_what_the_benchmarks_import_is_there(path: Path) -> None:
    """Their other packages need not be installed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            found = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(found, alias.name)]
            assert not missing or all(importlib.util.find_spec(f"{node.module}.{name}") for name in missing)
