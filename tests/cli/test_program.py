"""The program itself: help, options, exit codes, errors, plug-in packages, completion; no service runs."""

import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common_lib.command_line import CommandFailed, CommandLine, ExitCode, exit_code_of
from common_lib.exceptions import (
    AuthenticationError,
    ConflictError,
    InsufficientMemoryError,
    PredictionError,
    UnavailableError,
    UpstreamError,
)
from ml_workbench_client.cli import plugins, root
from tests.cli.conftest import PROGRAM, ROOT, Command, environment

HEAVY = {"httpx", "pydantic", "rich.console", "numpy", "polars", "yaml", "ml_workbench_client.workbench"}


def test_help_loads_nothing_but_typer() -> None:
    listing = f"""
import sys
sys.argv = ["ml-workbench", "--help"]
from ml_workbench_client.cli.root import main
try:
    main()
except SystemExit as ended:
    print(ended.code, sorted({HEAVY!r} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", listing], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.splitlines()[-1] == "0 []"


def test_help_lists_every_verb_by_section_and_the_exit_codes(command: Command) -> None:
    shown = command("--help").out
    for title, verbs in {
        "Models": "train predict jobs models experiments",
        "Live": "deploy undeploy rollback deployments replay queue agents",
        "Data": "features labels data",
        "Service": "serve doctor keys audit backup restore sign page version",
    }.items():
        section = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert set(re.findall(r"^  (\S+)", section, flags=re.M)) == set(verbs.split())
    text = " ".join(shown.split())
    assert all(f"{code.value} " in text for code in ExitCode)
    assert "..." not in shown.replace("COMMAND [ARGS]...", "")


def test_every_command_has_help_and_the_options_of_every_command(command: Command) -> None:
    found = [*root.build().registered_commands]
    names = [[str(each.name)] for each in found]
    for group in root.build().registered_groups:
        assert group.typer_instance is not None
        names += [[str(group.name), str(each.name)] for each in group.typer_instance.registered_commands]
    assert len(names) > 40
    for name in names:
        shown = command(*name, "--help")
        assert shown.code == 0
        assert all(option in shown.out for option in ("--url", "--api-key", "--json", "--debug")), name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "train"),
        (["jobs", "show"], "JOB"),
        (["jobs", "list", "--limit", "0"], "equal to 1"),
        (["models", "archive", "small"], "small@1.0.0"),
        (["models", "compare", "small"], "two versions"),
        (["models", "purge", "small"], "--confirm small"),
        (["models", "purge", "small", "--confirm", "big"], "nothing was removed"),
        (["agents", "reset", "default"], "--yes"),
        (["train", "-f", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["train", "--set", "lstm_units"], "name=value"),
        (["features", "--features", "rsi_14"], "name a symbol"),
        (["features", "EUR/USD", "-o", "out.xlsx"], ".parquet"),
        (["predict", "small", "nowhere.csv", "--url", "ftp://x"], "http://"),
    ],
)
def test_a_mistake_on_the_command_line_ends_with_2_and_a_sentence(
    command: Command, arguments: list[str], told: str
) -> None:
    ended = command(*arguments)
    assert ended.code == (ExitCode.REFUSED if "ftp://x" in arguments else ExitCode.USAGE)
    assert told in ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err


def test_where_nobody_answers_it_ends_with_3_and_says_how_to_start_or_name_a_service(command: Command) -> None:
    ended = command("jobs", "list")
    assert ended.code == ExitCode.UNREACHABLE
    assert "make serve" in ended.err
    assert "--url or WORKBENCH_URL" in ended.err
    as_json = command("jobs", "list", "--json")
    assert (as_json.code, as_json.out) == (ExitCode.UNREACHABLE, "")
    assert json.loads(as_json.err)["error_code"] == "UNAVAILABLE"


def test_the_traceback_comes_with_debug_alone(command: Command) -> None:
    assert "Traceback" not in command("jobs", "list").err
    assert "Traceback" in command("jobs", "list", "--debug").err


def test_options_of_every_command_may_stand_before_it(command: Command) -> None:
    ended = command("--json", "--url", "http://127.0.0.1:9", "version")
    assert (ended.code, ended.json["url"], ended.json["service"]) == (0, "http://127.0.0.1:9", None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("x"), ExitCode.UNREACHABLE),
        (AuthenticationError("x"), ExitCode.REFUSED),
        (ConflictError("x"), ExitCode.REFUSED),
        (InsufficientMemoryError("x"), ExitCode.REFUSED),
        (PredictionError("x"), ExitCode.BROKEN),
        (UpstreamError("x"), ExitCode.BROKEN),
    ],
)
def test_exit_codes_follow_from_the_error(error: Exception, code: ExitCode) -> None:
    assert exit_code_of(error) is code  # type: ignore[arg-type]


def test_a_mistake_of_the_program_itself_is_one_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    def break_down() -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(typer.Exit) as ended:
        root.carry_out(break_down, CommandLine())
    assert ended.value.exit_code == ExitCode.BROKEN
    assert "ZeroDivisionError: by zero; run it again with --debug" in capsys.readouterr().err


def test_the_key_is_in_no_output_whatever_happens(command: Command) -> None:
    key = "a-secret-key"
    assert key not in repr(CommandLine(api_key=key))
    for arguments in (["jobs", "list"], ["doctor"], ["version"], ["jobs", "list", "--debug"]):
        ended = command(*arguments, "--api-key", key)
        assert key not in ended.out + ended.err


def test_the_script_of_a_checkout_works_from_any_folder(tmp_path: Path) -> None:
    run = subprocess.run(
        [ROOT / "ml-workbench", "--version"],
        cwd=tmp_path,
        env=environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.startswith("ml-workbench 0.")


def test_shells_complete_verbs() -> None:
    run = subprocess.run(
        PROGRAM,
        env=environment(_ML_WORKBENCH_COMPLETE="complete_bash", COMP_WORDS="ml-workbench jobs ca", COMP_CWORD="2"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout.split() == ["cancel"], run.stderr


def test_another_package_brings_commands_into_groups_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "their_commands.py").write_text(
        """
import typer
from common_lib.command_line import CommandFailed
app, jobs, broken = typer.Typer(), typer.Typer(), "no typer"
app.add_typer(jobs, name="jobs")

@jobs.command("age")
def age(line, job: str) -> None:
    "Tell its age."
    line.screen.document({"age": job})

@jobs.command("list")
def list_(line) -> None:
    raise AssertionError("ours stays")

@app.command("fail")
def fail(line) -> None:
    raise CommandFailed("on purpose")
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [
        EntryPoint("theirs", "their_commands:app", "ml_workbench.commands"),
        EntryPoint("broken", "their_commands:broken", "ml_workbench.commands"),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    app = root.build()
    assert json.loads(CliRunner().invoke(app, ["jobs", "age", "7"]).stdout) == {"age": "7"}
    assert CliRunner().invoke(app, ["fail"]).exit_code == ExitCode.FAILED
    assert "newest first" in CliRunner().invoke(app, ["jobs", "list", "--help"]).stdout
    assert CliRunner().invoke(app, ["doctor", "--help"]).exit_code == 0


def test_a_broken_package_costs_its_own_commands_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [EntryPoint("theirs", "json:dumps", "ml_workbench.commands")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)
    root.build()
    assert "the commands of json are left out (TypeError: json:dumps is no typer.Typer)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["serve", "doctor", "backup", "restore"])
def test_without_the_services_package_its_commands_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(plugins, "SERVICE", EntryPoint("service", "not_there:app", "ml_workbench.commands"))
    app = root.build()
    for arguments in ([name], ["data", "check"]):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == ExitCode.USAGE
        assert "pip install ml-workbench-service" in ended.stderr
    assert CliRunner().invoke(app, ["data", "list", "--help"]).exit_code == 0


def test_a_failure_without_words_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def end() -> None:
        raise CommandFailed("", ExitCode.INTERRUPTED)

    with pytest.raises(typer.Exit):
        root.carry_out(end, CommandLine())
    assert capsys.readouterr().err == ""
