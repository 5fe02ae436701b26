"""Cases: a file is damaged, the service is asked, the file is put back; what was not as promised is a finding."""

import random
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from chaos.damage.damages import DAMAGES, damageable, damaged
from chaos.damage.questions import Question, QuestionList

LOOK_BACK_EVERY = 200
"""Cases between two looks at whether everything answers as at the beginning."""


@dataclass(frozen=True)
class Finding:
    """An answer that breaks the promise."""

    seed: int
    file: str
    damage: str
    question: str
    said: str

    def __str__(self) -> str:
        return f"[{self.seed}] {self.damage} {self.file}: {self.question}: {self.said}"


@dataclass
class Tally:
    """What has been tried so far."""

    num_cases: int = 0
    num_answers: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        statuses = ", ".join(f"{status}: {num}" for status, num in sorted(self.by_status.items()))
        return f"{self.num_cases} cases, {self.num_answers} answers ({statuses}), {len(self.findings)} findings"


@dataclass
class Cases:
    """Cases against one running service.

    Attributes:
        roots: its STATE_DIR and its registry.
        num_questions: of each case, by chance; None: all that have to do with the file, and a few others.
        on_finding: hears of each at once.
    """

    client: httpx.Client
    roots: Sequence[Path]
    tally: Tally = field(default_factory=Tally)
    num_questions: int | None = None
    on_finding: Callable[[Finding], None] = lambda _: None

    def run(self, num: int, seed: int, until: Callable[[], bool] = lambda: False) -> Tally:
        """So many, or fewer where `until` says so; each one's seed is `seed` and its number."""
        questions = QuestionList.of(self.client)
        for number in range(num):
            if until():
                break
            self.one(questions, seed + number)
            if number % LOOK_BACK_EVERY == LOOK_BACK_EVERY - 1 or number == num - 1:
                self._look_back(questions, seed + number)
        return self.tally

    def one(self, questions: QuestionList, seed: int) -> None:
        """One case."""
        chance = random.Random(seed)
        kinds = _by_kind(damageable(*self.roots))
        kind = chance.choice(sorted(kinds))
        file, name = chance.choice(kinds[kind]), chance.choice(sorted(DAMAGES))
        self.tally.num_cases += 1
        self.tally.by_kind[kind] += 1
        with damaged(file, DAMAGES[name], chance) as before:
            for question in questions.about(str(file), chance, num=self.num_questions):
                status, content = question.ask(self.client)
                self.tally.num_answers += 1
                self.tally.by_status[status] += 1
                if said := _fault(question, status, content, questions, str(file).encode() + before):
                    self._found(Finding(seed, str(file), name, f"{question.method} {question.path}", said))

    def _look_back(self, questions: QuestionList, seed: int) -> None:
        for each in questions.every:
            status, content = each.ask(self.client)
            wanted = questions.at_first[each.method, each.path]
            if status != wanted:
                said = f"{wanted} at first, now {status} {content[:300]!r}"
                self._found(Finding(seed, "everything is put back", "-", f"{each.method} {each.path}", said))

    def _found(self, finding: Finding) -> None:
        self.tally.findings.append(finding)
        self.on_finding(finding)


def _fault(question: Question, status: int, content: bytes, questions: QuestionList, of_file: bytes) -> str:
    """What is wrong with an answer; `of_file`: the path of what was damaged, and what stood in it."""
    if not question.is_kept(status):
        return f"{status} {content[:300].decode('utf-8', 'replace')}"
    if status != 200:
        return ""
    try:
        missing = questions.missing(question, content, of_file)
    except (ValueError, KeyError, TypeError):
        return traceback.format_exc(limit=1)
    return f"the list lacks {', '.join(sorted(missing))}" if missing else ""


def _by_kind(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files of one name are one kind, so that a thousand of one do not hide the one of another."""
    kinds: dict[str, list[Path]] = {}
    for each in paths:
        kinds.setdefault(each.name if not each.name[0].isdigit() else f"*{each.suffix}", []).append(each)
    return kinds
