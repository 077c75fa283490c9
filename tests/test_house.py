"""The house rules that a machine can check: import directions, documented format, shipped files."""

import ast
from pathlib import Path

import pytest

import sltt_bench
from sltt_bench.results.describe import describe

PACKAGE = Path(sltt_bench.__file__).parent
ROOT = PACKAGE.parent

FORBIDDEN = {
    "methods": ("data", "models", "results", "report", "runner", "engine", "measure"),
    "neurons.py": ("methods", "models", "data", "engine"),
    "surrogates.py": ("neurons", "methods", "models", "data", "engine"),
    "models": ("methods", "data", "engine", "results", "runner", "report", "measure"),
    "data": ("methods", "models", "engine", "results", "runner", "report", "measure"),
    "measure": (
        "models",
        "data",
        "engine",
        "results",
        "runner",
        "report",
    ),
    "engine.py": ("methods", "models", "data", "results", "report", "runner", "cli"),
    "runner.py": ("engine", "report", "experiment", "measure"),
    "results": ("report", "engine", "runner", "methods", "models", "data"),
    "analysis/gradients.py": ("data", "models", "engine", "results", "report", "runner", "measure"),
    "analysis/draws.py": ("data", "models", "engine", "results", "report", "runner", "measure"),
    "analysis/operations.py": ("data", "models", "engine", "results", "report", "runner"),
    "report": ("engine", "runner", "worker", "experiment", "profiler", "models", "data", "neurons"),
}
"""Part → the parts that it must never know."""

WITHOUT_TORCH = (
    "cli.py",
    "recipe.py",
    "plan.py",
    "runner.py",
    "commands.py",
    "terminal.py",
    "results/schema.py",
    "results/writer.py",
    "analysis/__init__.py",
    "analysis/plan.py",
    "models/__init__.py",
    "models/options.py",
    "data/__init__.py",
    "data/options.py",
    "methods/__init__.py",
)


def imported(path: Path, top_level_only: bool) -> set[str]:
    """Dotted names of the modules that a file imports, those only for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(part: str) -> list[Path]:
    path = PACKAGE / part
    return [path] if path.suffix else sorted(path.rglob("*.py"))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part: str) -> None:
    for path in files_of(part):
        for name in imported(path, top_level_only=False):
            if name.startswith("sltt_bench."):
                assert name.split(".")[1] not in FORBIDDEN[part], f"{path.name} imports {name}"


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_the_command_line_side_does_not_load_torch(file: str) -> None:
    for name in imported(PACKAGE / file, top_level_only=True):
        assert name.split(".")[0] not in ("torch", "torchvision"), f"{file} imports {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_file_states_its_subject_first(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_the_documented_format_is_the_schema() -> None:
    assert (ROOT / "results" / "README.md").read_text(encoding="utf-8") == describe()
