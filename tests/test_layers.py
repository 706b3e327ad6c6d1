"""The architecture: imports go one way down the layers, without a circle, and every folder stays small."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Each layer may import from those below it, not from its own line and not from above. Parts of a line stand side by side.
LAYERS = [
    ["tests", "benchmarks", "launch"],
    ["xlm_train.commands", "xlm_train.__main__", "data_prep"],
    ["xlm_train.train"],
    ["xlm_train.plan"],
    ["xlm_train.report", "xlm_train.interop"],
    ["xlm_train.config"],
    ["xlm_train.training"],
    ["xlm_train.objectives", "xlm_train.evaluation"],
    ["xlm_train.data", "xlm_train.model"],
    ["xlm_train.text"],
    ["xlm_train.runtime"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# The public API in the root hands its parts out of all folders, each when it is asked for.
ROOT = "xlm_train"
ENTRIES = {
    "commands", "config", "data", "evaluation", "interop", "model", "objectives", "plan", "report", "runtime", "text",
    "train.py", "training",
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in ("xlm_train", "data_prep"):
        for path in (REPOSITORY / package).rglob("*.py"):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of the project that a file imports, anywhere in it, those inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield from ((name.name, node.lineno),) if name.name in MODULES else ()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found = whole if whole in MODULES else str(node.module)
                if found in MODULES:
                    yield found, node.lineno


def part_of(module: str) -> str | None:
    """The part of LAYERS that a module belongs to; None for the root."""
    return next((part for part in LEVEL if module == part or module.startswith(f"{part}.")), None)


def test_every_module_has_a_layer() -> None:
    assert [module for module in MODULES if part_of(module) is None] == [ROOT]


def test_imports_go_down() -> None:
    upward = []
    for module, path in MODULES.items():
        own = part_of(module)
        for target, line in imports_of(path):
            other = part_of(target)
            if own is None or own == other or target == ROOT:
                continue
            if other is None or LEVEL[other] <= LEVEL[own]:
                upward.append(f"{path.relative_to(REPOSITORY)}:{line}: {own} imports {target}")
    assert upward == []


def test_no_circles_between_files() -> None:
    graph = {module: {target for target, _ in imports_of(path)} for module, path in MODULES.items() if module != ROOT}
    assert circles(graph) == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other (Tarjan 1972)."""
    found: list[list[str]] = []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_circles_are_found() -> None:
    """The check can fail."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_package_has_thirteen_entries() -> None:
    entries = {path.name for path in (REPOSITORY / "xlm_train").iterdir()} - {
        "__init__.py", "__main__.py", "py.typed", "__pycache__",
    }  # fmt: skip
    assert entries == ENTRIES


def test_entry_points_read_call_and_print() -> None:
    commands = {
        path.name: len(path.read_text().splitlines()) for path in (REPOSITORY / "xlm_train/commands").glob("*.py")
    }
    assert {name for name, count in commands.items() if count > 100} == {"sweep.py"}  # which is no command


@pytest.mark.parametrize("package", ["xlm_train", "data_prep"])
def test_files_are_short(package: str) -> None:
    lines = {str(path): len(path.read_text().splitlines()) for path in (REPOSITORY / package).rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > 400} == {}
    if package == "xlm_train":
        assert lines[str(REPOSITORY / "xlm_train/train.py")] <= 150


def test_no_file_is_a_single_small_function() -> None:
    """One-function files belong into the file that they serve; a console command and an objective are files by right."""
    alone = defaultdict(list)
    for module, path in MODULES.items():
        if module.startswith(("xlm_train.commands", "xlm_train.objectives", "data_prep.sources")) or path.name in (
            "__init__.py",
            "__main__.py",
        ):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        states = any(isinstance(node, ast.Assign | ast.AnnAssign) for node in tree.body)  # a format, a text
        if len(defined) == 1 and isinstance(defined[0], ast.FunctionDef) and not states:
            alone[module].append(defined[0].name)
    assert dict(alone) == {}


def test_nothing_imports_the_entry_points() -> None:
    """tests, benchmarks and launch are imported by nothing in the packages, and xlm_train never imports data_prep."""
    for module, path in MODULES.items():
        names = {
            name.name if isinstance(node, ast.Import) else str(node.module)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        forbidden = ("tests", "benchmarks", "launch") + (("data_prep",) if module.startswith("xlm_train") else ())
        assert not [name for name in names if name.split(".")[0] in forbidden], module
