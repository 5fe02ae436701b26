"""Damage under a service that is away: it starts and answers all the same, or says in one sentence why not."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.running_service import started
from chaos.damage.cases import Finding, Tally
from chaos.damage.damages import DAMAGES, damageable, damaged
from chaos.damage.population import client_of, variables
from chaos.damage.questions import QuestionList

MAY_REFUSE = frozenset({"keys.json"})
"""Where a start must not go on: with no keys the service would be open."""


def run_starts(
    folder: Path, key: str, *, num: int, seed: int, tally: Tally, on_finding: Callable[[Finding], None],
    deadline_s: float = float("inf"),
) -> None:  # fmt: skip
    """So many starts over one damaged file each; what was found is in the tally."""
    with started(folder, **variables(folder)) as service, client_of(service.address, key) as client:
        questions = QuestionList.of(client)
    for number in range(num):
        if time.monotonic() > deadline_s:
            return
        chance = random.Random(seed + number)
        files = damageable(folder / "state", folder / "registry")
        by_name = {each.name: each for each in sorted(files, key=lambda _: chance.random())}
        file, name = by_name[chance.choice(sorted(by_name))], chance.choice(sorted(DAMAGES))
        tally.num_cases += 1
        tally.by_kind[f"start over {file.name}"] += 1
        with damaged(file, DAMAGES[name], chance):
            said = _started_and_asked(folder, key, questions, tally)
        for question, fault in said.items():
            if question == "start" and file.name in MAY_REFUSE:
                continue
            finding = Finding(seed + number, str(file), name, question, fault)
            tally.findings.append(finding)
            on_finding(finding)


def _started_and_asked(folder: Path, key: str, questions: QuestionList, tally: Tally) -> dict[str, str]:
    try:
        with started(folder, **variables(folder)) as service, client_of(service.address, key) as client:
            found = {}
            for each in questions.every:
                status, content = each.ask(client)
                tally.num_answers += 1
                tally.by_status[status] += 1
                if not each.is_kept(status):
                    found[f"{each.method} {each.path}"] = f"{status} {content[:300]!r}"
            return found
    except (SystemExit, RuntimeError) as error:
        return {"start": str(error)[-500:]}
