"""The laws of docs/architecture.md that source code alone can keep; the story test reads the running processes."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ml_workbench_service", "common_lib")
FOLDERS = (*PACKAGES, "tests", "tools", "benchmarks")
MOST_LINES_OF_FILE = 350
MOST_LINES_OF_FUNCTION = 60
DRAWERS = {"util", "utils", "helper", "helpers", "common", "base", "misc", "manager", "managers", "handler", "handlers"}
CODE_IN_DATA = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
FORKING = {"multiprocessing", "concurrent.futures.process"}
KEPT_OUT_OF_THE_API = {
    "torch", "mlflow", "talib", "polars", "pandas", "currency_converter", "optuna", "gymnasium", "stable_baselines3",
    "numba", "sklearn", "skl2onnx", "onnx",
}  # fmt: skip
API_ROOTS = ("ml_workbench_service.main", "ml_workbench_service.app")
DISCOVERED = ("ml_workbench_service.families", "ml_workbench_service.accelerators", "ml_workbench_service.api")
SHARED_MAY_IMPORT = {"pydantic", "common_lib"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files(*folders: str) -> list[Path]:
    """Every Python file below these folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    """A file's syntax."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.stmt | ast.expr | None = None) -> str:
    """File and line, as an editor jumps to it."""
    return f"{path.relative_to(ROOT)}:{node.lineno if node else 1}"


def definitions(path: Path) -> Iterator[Definition]:
    """Every class and function of a file, nested ones too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that an import statement loads, `from a import b` as both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_at_import(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """What importing the file loads: statements outside functions, save those that only type checkers read."""
    waiting: list[ast.AST] = [tree(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.stmt):
            yield from ((node, name) for name in imported(node))
        waiting.extend(ast.iter_child_nodes(node))


def file_of(module: str) -> Path | None:
    """The source of one of our modules, None where the name is no module of ours."""
    stem = ROOT.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def closure(roots: list[str]) -> dict[str, list[str]]:
    """Every module of ours that importing the roots loads, with the chain of imports that leads to it."""
    chains = {root: [root] for root in roots}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        path = file_of(module)
        if path is None:
            continue
        parents = [module.rpartition(".")[0]] if "." in module else []
        for name in [*parents, *(name for _, name in loaded_at_import(path))]:
            if name.startswith(PACKAGES) and file_of(name) and name not in chains:
                chains[name] = [*chains[module], name]
                waiting.append(name)
    return chains


def test_no_file_is_longer_than_350_lines() -> None:
    lengths = {where(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files(*FOLDERS)}
    assert {place: length for place, length in lengths.items() if length > MOST_LINES_OF_FILE} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{where(path, node)} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in files(*FOLDERS)
        for node in definitions(path)
        if not isinstance(node, ast.ClassDef)
    }
    assert {place: length for place, length in lengths.items() if length > MOST_LINES_OF_FUNCTION} == {}


def test_no_module_is_a_drawer() -> None:
    names = {module_of(path) for path in files(*FOLDERS)}
    assert [name for name in sorted(names) if DRAWERS.intersection(name.split("."))] == []


def test_a_bundle_is_data_never_code() -> None:
    found = []
    for path in files(*PACKAGES):
        for node in ast.walk(tree(path)):
            found += [f"{where(path)} {name}" for name in imported(node) if name.split(".")[0] in CODE_IN_DATA]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.save", "eval", "exec"):
                found.append(f"{where(path, node)} {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found.append(f"{where(path)} allow_pickle")
    assert found == []


def test_no_process_is_forked() -> None:
    found = []
    for path in files(*PACKAGES):
        for node in ast.walk(tree(path)):
            found += [f"{where(path)} {name}" for name in imported(node) if name in FORKING or name == "os.fork"]
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.fork", "os.forkpty"):
                found.append(where(path, node))
    assert found == []


def test_the_api_process_imports_no_heavy_library() -> None:
    discovered = [module_of(path) for name in DISCOVERED for path in files(name.replace(".", "/"))]
    chains = closure([*API_ROOTS, *discovered])
    assert len(chains) > 20, "the walk over the imports found too little to prove anything"
    found = [
        f"{' -> '.join(chain)} -> {name}"
        for module, chain in chains.items()
        if (path := file_of(module))
        for _, name in loaded_at_import(path)
        if name.split(".")[0] in KEPT_OUT_OF_THE_API
    ]
    assert found == []


def test_the_walk_over_imports_would_find_torch() -> None:
    chains = closure(["ml_workbench_service.learning.recurrent"])
    path = file_of("ml_workbench_service.learning.recurrent")
    assert path is not None
    assert "torch" in {name for _, name in loaded_at_import(path)}
    assert "ml_workbench_service.contracts.contract" in chains


def test_common_lib_needs_the_standard_library_and_pydantic_alone() -> None:
    found = [
        f"{where(path, node)} {name}"
        for path in files("common_lib")
        for node, name in loaded_at_import(path)
        if name.split(".")[0] not in SHARED_MAY_IMPORT | sys.stdlib_module_names
    ]
    assert found == []


def test_imports_are_absolute() -> None:
    found = [
        where(path, node)
        for path in files(*FOLDERS)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert found == []


def public_definitions(parent: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[Definition, str]]:
    """Classes and functions whose whole path is public; what lies inside a function is nobody's interface."""
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            marks = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
            if marks & {"overload", "override", "setter"}:
                continue
            yield node, prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize("folder", PACKAGES)
def test_everything_public_has_a_docstring(folder: str) -> None:
    bare = [where(path) for path in files(folder) if not ast.get_docstring(tree(path))]
    for path in files(folder):
        bare += [f"{where(path, n)} {name}" for n, name in public_definitions(tree(path)) if not ast.get_docstring(n)]
    assert bare == []


def test_every_module_stands_on_a_floor() -> None:
    contract = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert contract is not None
    floors = set(re.findall(r"[\w.]+", contract[1]))
    modules = {module_of(path) for path in files("ml_workbench_service")} - {"ml_workbench_service.jobs", PACKAGES[0]}
    homeless = {module for module in modules if not any(f"{module}.".startswith(f"{floor}.") for floor in floors)}
    assert homeless == set()
