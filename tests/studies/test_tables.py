"""Tables say what they found, decoder themselves, and find their place in the document."""

from pathlib import Path

import pytest

from studies.__main__ import ALL, DOCUMENT, main
from studies.tables import Goal, Run, Table, begin, of_all, share, write
from tools.documents import END

RUN = Run(seed=3)


def table(name: str = "rates", *goals: Goal) -> Table:
    return Table(name, "Rates", "What was found.", ["model", "rate"], [["linear", "1.0 %"]], goals)


def test_an_exact_interval_is_the_one_in_the_books() -> None:
    """Clopper and Pearson's for 0 of 200 ends at 1 - 0.025^(1/200); for 10 of 200 it is 2.4 to 9.0 %."""
    assert share([False] * 200) == f"0.0 to {100 * (1 - 0.025 ** (1 / 200)):.1f} %"
    assert share([True] * 10 + [False] * 190) == "2.4 to 9.0 %"
    assert of_all([True] * 10 + [False] * 190) == "10 of 200 (5.0 %)"


def test_a_goal_is_met_at_its_bound_and_never_by_what_is_not_a_number() -> None:
    assert Goal("rate", 0.05, 0.05, at_most=True).met
    assert not Goal("rate", 0.051, 0.05, at_most=True).met
    assert Goal("share", 0.8, 0.8).met
    assert not Goal("share", 0.79, 0.8).met
    assert not Goal("share", float("nan"), 0.8).met
    assert not Goal("share", float("nan"), 0.8, at_most=True).met
    assert str(Goal("share", 0.79, 0.8)) == "**missed**: share 0.79, at least 0.8"


def test_a_table_is_written_between_its_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"# Page\n\n{begin('rates')}\nold\n{END}\n\nBetween.\n\n{begin('other')}\nkept\n{END}\nLast.\n")
    for _ in range(2):
        write(document, [table("rates", Goal("rate", 0.01, 0.05, at_most=True))], RUN)
    text = document.read_text()
    assert text.startswith("# Page\n\n")
    assert text.endswith(f"Between.\n\n{begin('other')}\nkept\n{END}\nLast.\n")
    assert "old" not in text
    assert text.count("| linear | 1.0 % |") == 1
    assert "Seed 3." in text
    assert "- met: rate 0.01, at most 0.05" in text


def test_a_table_without_a_place_is_refused(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"{begin('other')}\n{END}\n")
    with pytest.raises(ValueError, match="no place for this table; add <!-- rates"):
        write(document, [table()], RUN)


def test_an_unknown_table_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "null_series,nulls"]) == 2
    assert "no table is called nulls; there are null_series, " in capsys.readouterr().out


def test_a_missed_goal_ends_with_one_unless_everything_was_tiny(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"{begin('rates')}\n{END}\n")
    monkeypatch.setitem(ALL, "rates", lambda run: [table("rates", Goal("rate", 0.06, 0.05, at_most=True))])
    assert main(["--only", "rates", "--quick", "--document", str(document)]) == 0
    assert "linear" not in document.read_text()
    assert main(["--only", "rates", "--document", str(document)]) == 1
    assert "**missed**: rate 0.06" in document.read_text()
    assert "**missed**: rate 0.06" in capsys.readouterr().out


def test_the_document_has_a_place_for_every_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in (
        "null_series",
        "injected_signal",
        "injected_leaks",
        "clean_pipelines",
        "intervals",
        "interval_hours",
        "real_data",
    ):
        assert text.count(begin(name)) == 1
    assert text.count(END) == text.count("written by make evaluate -->")
