"""`doctor`: looks at everything that the service needs, without a service and without changing anything."""

from collections.abc import Callable

from pydantic import ValidationError

from common_lib.command_line import CommandFailed, CommandLine
from ml_workbench_service.cli.checks import machine, outside, places
from ml_workbench_service.cli.checks.finding import Finding, State
from ml_workbench_service.settings import Settings, mistakes

WORDS: dict[State, str] = {"ok": "ok", "off": "off", "doubtful": "doubtful", "broken": "BROKEN"}


def examine(line: CommandLine) -> None:
    """Shows the findings.

    Raises:
        CommandFailed: something is broken.
    """
    with line.screen.bar("looking") as bar:
        findings = _findings(line, lambda done, total, name: bar.step(done, total, name))
    line.screen.rows(
        "findings",
        findings,
        {
            "what": "name",
            "state": lambda each: WORDS[each.state],
            "found": lambda each: each.detail if each.next_step == "" else f"{each.detail}; {each.next_step}",
        },
    )
    num_broken = sum(each.state == "broken" for each in findings)
    if num_broken:
        raise CommandFailed(f"{num_broken} of {len(findings)} are broken; each says what to do")


def _findings(line: CommandLine, told: Callable[[int, int, str], None]) -> list[Finding]:
    looks: dict[str, Callable[[], list[Finding]]] = {
        "Python": machine.python,
        "packages": machine.packages,
        "memory": machine.memory,
    }
    before: list[Finding] = []
    try:
        settings = Settings()
    except ValidationError as error:
        step = "correct the variable; what depends on the environment was not looked at"
        before = [Finding("environment", "broken", each, step) for each in mistakes(error)]
    else:
        looks |= {
            "training memory": lambda: machine.training_memory(settings),
            "folders": lambda: places.folders(settings),
            "state": lambda: places.state_lock(settings),
            "model registry": lambda: places.registry(settings),
            "feature store": lambda: outside.feature_store(settings),
            "Redis": lambda: outside.redis(settings),
            "MLflow": lambda: outside.tracking(settings),
            "port": lambda: outside.port(settings),
        }
    looks["service"] = lambda: outside.service(line)
    found = []
    for number, (name, look) in enumerate(looks.items(), 1):
        told(number, len(looks), name)
        found += look()
    return [*before, *found]
