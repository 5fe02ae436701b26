"""One word, one meaning: docs/glossary.md names what exists, and words that were given up stay given up."""

import ast
import re
from collections.abc import Iterator

from tests.test_architecture import PROGRAMS, ROOT, definitions, file_of, files, module_of, tree, where

PACKAGE = "ml_workbench_service"
GLOSSARY = ROOT / "docs" / "glossary.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FEWEST_TERMS = 40

RETIRED = {
    "asking", "assignment", "attendant", "books", "course", "crew", "fire", "flood", "hire", "hiring", "journal",
    "judge", "judgement", "keeper", "lane", "lanes", "learner", "ledgers", "looks", "mind", "outline", "pace",
    "plant", "planted", "planting", "said", "settle", "settled", "settlement", "situation", "stretch", "tape", "tune",
}  # fmt: skip
"""Words of classes, functions and modules that meant several things, or nothing to an expert of the field."""
KEPT = {
    "ml_workbench_service.workflows.settle_outcomes": "a prediction's outcome is settled, in the field's own sense",
    "ml_workbench_service.contracts.evaluation": "`looks` is a key of every card",
    "ml_workbench_service.reinforcement.dqn": "`lanes` is a hyper-parameter, and a key of checkpoints",
}
"""Modules where a retired word stands for what is on the wire or on disk."""
RETIRED_IN_PROSE = re.compile(
    r"\b(?:attendants?|crew|hir(?:es?|ed|ing)|keepers?|known_ms|learners?|minds?|outlines?|tapes?|the seed's)\b", re.I
)


def rows() -> Iterator[tuple[str, list[str]]]:
    """Each term of the glossary with who bears it."""
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [each.strip() for each in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] not in ("term", "---"):
            yield cells[0], re.findall(r"`([\w.]+(?::[\w.]+)?)`", cells[2])


def exists(bearer: str) -> bool:
    """Whether `module`, `module:Name` or `module:Name.field` is there."""
    module, _, name = bearer.partition(":")
    path = file_of(f"{PACKAGE}.{module}")
    if path is None or not name:
        return path is not None
    owner, _, member = name.partition(".")
    for node in tree(path).body:
        if owner in named(node):
            inside = {each for child in ast.walk(node) for each in named(child)}
            return not member or member in inside
    return False


def named(node: ast.AST) -> set[str]:
    """What a statement gives a name to."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {ast.unparse(each).removeprefix("self.") for each in targets}


def words(identifier: str) -> set[str]:
    """`_GroupBooks` → group, books."""
    return {each.lower() for each in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def test_the_glossary_has_each_term_once_and_its_bearer_exists() -> None:
    terms = [term for term, _ in rows()]
    assert len(terms) >= FEWEST_TERMS
    assert len(set(terms)) == len(terms)
    assert [term for term, bearers in rows() if not bearers] == []
    assert [bearer for _, bearers in rows() for bearer in bearers if not exists(bearer)] == []


def test_a_bearer_that_is_not_there_would_be_found() -> None:
    assert exists("learning.interfaces.family:Family.train")
    assert not exists("learning.interfaces.family:Judge")
    assert not exists("learning.judges")


def test_no_class_function_or_module_has_a_retired_name() -> None:
    found = []
    for path in files(*PROGRAMS):
        module = module_of(path)
        if module in KEPT:
            continue
        found += [module] if words(module.rpartition(".")[2]) & RETIRED else []
        found += [f"{where(path, node)} {node.name}" for node in definitions(path) if words(node.name) & RETIRED]
    assert found == []


def test_every_exception_is_needed() -> None:
    assert [module for module in KEPT if file_of(module) is None] == []


def test_no_document_uses_a_retired_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number} {match[0]}"
        for path in DOCUMENTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in RETIRED_IN_PROSE.finditer(re.sub(r"`[^`]*`", "", line))
    ]
    assert found == []


def test_prose_is_at_most_120_columns_wide() -> None:
    """Tables, links and blocks of code are as wide as they are."""
    found = []
    for path in DOCUMENTS:
        is_code = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            is_code ^= line.startswith("```")
            if len(line) > 120 and not is_code and not line.lstrip().startswith("|"):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []
