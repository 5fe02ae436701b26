"""The laws of docs/architecture.md that source code alone can keep; the story test reads the running processes."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ml_workbench_service", "ml_workbench_client", "ml_workbench_figures", "common_lib")
PROGRAMS = (*PACKAGES, "tools", "benchmarks", "studies", "chaos")
FOLDERS = (*PROGRAMS, "tests")
LINES_OF_FILE, MOST_LINES_OF_FILE = 500, 1000
LONG_FILES: dict[str, str] = {}
"""Files of more than 500 lines, each with its reason."""
MOST_LINES_OF_FUNCTION = 60
MOST_FILES_OF_FOLDER = 25
OF_ONE_KIND = {
    "benchmarks",
    "benchmarks/contestants",
    "ml_workbench_service/contracts",
    "ml_workbench_service/families",
}
DRAWERS = {"util", "utils", "helper", "helpers", "common", "base", "misc", "manager", "managers", "handler", "handlers"}
CODE_IN_DATA = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
FORKING = {
    "multiprocessing", "torch.multiprocessing", "concurrent.futures.process", "os.fork", "os.forkpty", "pty.fork",
}  # fmt: skip
SPAWNING = ("multiprocessing.get_context", "multiprocessing.connection", "multiprocessing.queues")
WITH_SPAWN = {"get_context", "ProcessPoolExecutor"}
NEVER = {"fork", "forkpty", "forkserver", "preexec_fn", "SubprocVecEnv"}
NEVER_STARTED = ("benchmarks/contestants/manager_publishing.py", "multiprocessing.managers")
"""The original queue, rebuilt to be measured: its manager serves in a process of its own, never forked."""
FORKED_TO_BE_KILLED = "chaos/kill_sweep/killing.py fork"
"""A process of one thread, of the tool that kills it, not of the service."""
KEPT_OUT_OF_THE_API = {
    "torch", "mlflow", "talib", "polars", "pyarrow", "pandas", "currency_converter", "optuna", "gymnasium",
    "stable_baselines3", "numba", "sklearn", "lightgbm", "skl2onnx", "onnx", "scipy", "grpc", "google", "ray",
}  # fmt: skip
API_ROOTS = ("ml_workbench_service.main", "ml_workbench_service.app")
DISCOVERED = ("ml_workbench_service.families", "ml_workbench_service.accelerators", "ml_workbench_service.api")
LOADED_WHERE_IT_IS_ON = {"ml_workbench_service.api.inference_protocol.grpc_server"}
"""What a setting switches on, and its start alone imports."""
LOADS_ITS_FILES = "iter_modules(__path__)"
"""What a package says that imports every file in it: the API process loads these packages too."""
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


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*FOLDERS)}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > LINES_OF_FILE}
    assert {place: length for place, length in long.items() if place not in LONG_FILES} == {}
    assert {place: length for place, length in long.items() if length > MOST_LINES_OF_FILE} == {}
    assert [place for place in LONG_FILES if place not in long] == []


def test_functions_are_short() -> None:
    lengths = {
        f"{where(path, node)} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in files(*FOLDERS)
        for node in definitions(path)
        if not isinstance(node, ast.ClassDef)
    }
    assert {place: length for place, length in lengths.items() if length > MOST_LINES_OF_FUNCTION} == {}


def test_no_folder_is_a_heap() -> None:
    """Rooms of one kind (a file a family, a file a noun of the wire, a file a page) may hold more."""
    num_files = Counter(path.parent for path in files(*FOLDERS) if path.name != "__init__.py")
    heaps = {str(folder.relative_to(ROOT)): num for folder, num in num_files.items() if num > MOST_FILES_OF_FOLDER}
    assert {folder: num for folder, num in heaps.items() if folder not in OF_ONE_KIND} == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module_of(path): {
            name
            for node in ast.walk(tree(path))
            for name in imported(node)
            if name.startswith(PACKAGES) and file_of(name) and name != module_of(path)
        }
        for path in files(*PACKAGES)
    }
    graph = {
        module: {name for name in names if not f"{module}.".startswith(f"{name}.")} for module, names in graph.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


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


def spawns(call: ast.Call) -> bool:
    """`get_context("spawn")`, or a pool that is given a context, of which a file can have no other."""
    name = last_name(call.func)
    if name == "get_context":
        return ast.unparse(call) == "get_context('spawn')"
    context = [*call.args[1:2], *(each.value for each in call.keywords if each.arg == "mp_context")]
    is_given = len(context) == 1 and not isinstance(context[0], ast.Constant | ast.Starred)
    return name == "ProcessPoolExecutor" and is_given


def last_name(node: ast.AST) -> str | None:
    """`c` of `a.b.c`; None of what is no name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def forks(module: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """What begins a process with a copy of this one's memory, threads and locks, or lets the platform choose.

    Of multiprocessing a file may import `get_context` and types, under their own names; whatever spawns is called on
    the spot, so that no other name can stand for it.
    """
    called = {id(node.func) for node in ast.walk(module) if isinstance(node, ast.Call) and spawns(node)}
    for node in ast.walk(module):
        for name in imported(node):
            if name.startswith(SPAWNING) or (isinstance(node, ast.ImportFrom) and name == "multiprocessing"):
                continue  # what is taken from it comes next, by its own name
            if any(f"{name}.".startswith(f"{each}.") for each in FORKING):
                yield node, name
        if isinstance(node, ast.alias) and node.asname and node.name in WITH_SPAWN:
            yield node, node.name
        name = last_name(node)
        if name in NEVER or (name in WITH_SPAWN and id(node) not in called):
            yield node, str(name)
        if isinstance(node, ast.keyword) and node.arg in NEVER:
            yield node, str(node.arg)
        if isinstance(node, ast.Constant) and node.value in FORKING | NEVER:
            yield node, str(node.value)


def test_no_process_is_forked() -> None:
    file, module = NEVER_STARTED
    found = {f"{path.relative_to(ROOT)} {name}" for path in files(*PROGRAMS) for _, name in forks(tree(path))}
    assert found == {f"{file} {module}", f"{file} {module}.BaseManager", FORKED_TO_BE_KILLED}
    used = {last_name(node) for node in ast.walk(tree(ROOT / file))}
    assert "get_server" in used
    assert "start" not in used  # a manager that is started forks


@pytest.mark.parametrize(
    "forking",
    [
        "import os\nos.fork()",
        "from os import fork",
        "import os\ngetattr(os, 'fork')()",
        "import pty\npty.fork()",
        "import multiprocessing\nmultiprocessing.Pool()",
        "import multiprocessing as mp\nmp.get_context('spawn')",
        "from multiprocessing import Pool",
        "from multiprocessing import Process as Worker",
        "from multiprocessing.pool import Pool",
        "import multiprocessing.pool",
        "import importlib\nimportlib.import_module('multiprocessing')",
        "from multiprocessing import get_context\nget_context()",
        "from multiprocessing import get_context\nget_context('fork')",
        "from multiprocessing import get_context\nget_context(method)",
        "from multiprocessing import get_context as context_of\ncontext_of('forkserver')",
        "from multiprocessing import get_context\nother = get_context\nother()",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor(2)",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor(2, mp_context=None)",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor(*given)",
        "from concurrent.futures import ProcessPoolExecutor as Pool\nPool(2)",
        "from concurrent import futures\nfutures.ProcessPoolExecutor(2)",
        "from concurrent import futures\nPool = futures.ProcessPoolExecutor\nPool(2)",
        "from concurrent.futures.process import ProcessPoolExecutor",
        "from torch.multiprocessing import spawn",
        "from torch import multiprocessing",
        "from stable_baselines3.common.vec_env import SubprocVecEnv\nSubprocVecEnv(envs)",
        "import subprocess\nsubprocess.Popen(command, preexec_fn=begin)",
    ],
)
def test_a_fork_would_be_found(forking: str) -> None:
    assert list(forks(ast.parse(forking)))


def test_fresh_interpreters_are_allowed() -> None:
    spawning = """
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
context = get_context("spawn")
queue: SimpleQueue[int] = context.SimpleQueue()
context.Process(target=work).start()
ProcessPoolExecutor(2, context)
futures.ProcessPoolExecutor(mp_context=get_context("spawn"))
ThreadPoolExecutor(2)
subprocess.Popen(command, start_new_session=True)
"""
    assert list(forks(ast.parse(spawning))) == []


def test_the_api_process_imports_no_heavy_library() -> None:
    discovered = [module_of(path) for name in DISCOVERED for path in files(name.replace(".", "/"))]
    assert set(discovered) >= LOADED_WHERE_IT_IS_ON
    discovered = [name for name in discovered if name not in LOADED_WHERE_IT_IS_ON]
    chains: dict[str, list[str]] = {}
    while len(chains) < len(chains := closure([*API_ROOTS, *discovered])):
        packages = [path for module in chains if (path := file_of(module)) and path.name == "__init__.py"]
        whole = [path.parent for path in packages if LOADS_ITS_FILES in path.read_text(encoding="utf-8")]
        discovered += [module_of(path) for folder in whole for path in folder.glob("*.py")]
    assert "ml_workbench_service.training.tasks.network_task" in chains
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
    chains = closure(["ml_workbench_service.learning.networks.recurrent"])
    path = file_of("ml_workbench_service.learning.networks.recurrent")
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
    modules = {module_of(path) for path in files("ml_workbench_service")} - {PACKAGES[0]}
    homeless = {module for module in modules if not any(f"{module}.".startswith(f"{floor}.") for floor in floors)}
    assert homeless == set()


def test_every_caller_says_how_long_it_waits() -> None:
    """httpx waits five seconds unless told, which a busy machine needs for a start or a document alone."""
    found = []
    for path in files(*PACKAGES, "tests", "benchmarks", "chaos", "studies", "tools", "examples"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("httpx."):
                verb = ast.unparse(node.func).removeprefix("httpx.")
                calls = verb in ("get", "post", "put", "delete", "request", "stream", "Client", "AsyncClient")
                if calls and not {"timeout", None} & {each.arg for each in node.keywords}:
                    found.append(where(path, node))
    assert found == []
