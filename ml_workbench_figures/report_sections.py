"""Report's text: a card as HTML: verdict, summary, figures beside baselines, costs, certificate, lineage.

Everything is escaped here, once, by `_cell`, `_pairs` and `_table`.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_workbench_figures.captions import spelt
from ml_workbench_figures.desk_tables import desk_tables

if TYPE_CHECKING:
    from ml_workbench_service.contracts.desk_report import DeskReport
    from ml_workbench_service.contracts.evaluation import CombinatorialReport, Evaluation
    from ml_workbench_service.contracts.models import ModelCard

CONVINCING = {"skill"}
PARTS = {"stop": "validation", "calibrate": "calibration"}
"""Parts as cards call them, and as everybody else does."""
SECTIONS = {"summary-of": "Summary", "figures-of": "Figures", "desk-of": "Desk report", "test-of": "Test part",
            "costs-of": "Costs", "certificate-of": "Certificate", "lineage-of": "Lineage"}  # fmt: skip


def head(card: "ModelCard") -> str:
    """Title, verdict with its reasons, and the way through the page."""
    evaluation = card.by_current_rules().evaluation
    doubtful = "" if evaluation.verdict in CONVINCING else " doubtful"
    proof = f" (proof: {evaluation.proof})" if evaluation.proof else ""
    economic = ""
    if evaluation.economic is not None:
        stated = _cell(spelt(evaluation.economic))
        economic = f"<p>After costs: <b>{stated}</b>. {_cell(evaluation.economic_reason)}</p>"
    links = "".join(f'<li><a href="#{place}">{words}</a></li>' for place, words in SECTIONS.items())
    return (
        '<a class="skip" href="#main">Skip to the content</a>\n<header>\n<div>'
        f'<h1>{_cell(card.id)} {_cell(card.version)}</h1><p class="muted">{_cell(card.name)}, '
        f"{_cell(spelt(card.type))} by {_cell(card.family)}, {_cell(', '.join(card.symbols))} {_cell(card.timeframe)}"
        "</p></div>\n"
        '<button type="button" id="toggle" aria-pressed="false" hidden>Dark colours</button>\n</header>\n'
        f'<main id="main" tabindex="-1">\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
        f'<div class="verdict{doubtful}"><p><strong>Verdict: {_cell(spelt(evaluation.verdict))}</strong>'
        f"{_cell(proof)}</p><p>{_cell(evaluation.reason)}</p>{economic}</div>\n"
    )


def summary(card: "ModelCard") -> str:
    """What the version is and what it was made of."""
    borders = card.split.borders
    facts = {
        "Status": card.status,
        "Target": card.target or "none",
        "Features": ", ".join(card.features),
        "Horizon and lookback": f"{card.horizon} and {card.lookback} bars",
        "Parts begin": ", ".join(
            f"{PARTS.get(name, name)} {moment:%Y-%m-%d %H:%M}" for name, moment in borders.items()
        ),
        "Windows": ", ".join(f"{PARTS.get(name, name)} {num:,}" for name, num in card.split.num_windows.items()),
        "Rows count": "each as much"
        if card.split.sample_weights is None
        else f"by uniqueness: as many as {card.split.sample_weights.distinct_labels:,.0f} labels that share no bar",
        "Data": f"{card.data_source}, calendar {card.calendar}, filled at the {spelt(card.fill)}",
        "Precision": card.precision,
        "Published": f"{card.created_at:%Y-%m-%d %H:%M} UTC",
        "Expires": f"{card.expires_at:%Y-%m-%d %H:%M} UTC",
        "Notes": card.notes,
    }
    warnings = "".join(f"<li>{_cell(each)}</li>" for each in card.warnings)
    listed = f"<h3>Warnings</h3><ul>{warnings}</ul>\n" if warnings else ""
    settings = _pairs({name: str(value) for name, value in card.hyperparameters.items()})
    return (
        f'<section aria-labelledby="summary-of">\n<h2 id="summary-of">Summary</h2>\n{_pairs(facts)}{listed}'
        f"<details><summary>Hyper-parameters</summary>{settings}</details>\n</section>\n"
    )


def left_out(reasons: Mapping[str, str]) -> str:
    """Figures that are not drawn, and why."""
    if not reasons:
        return ""
    items = "".join(f"<li>{_cell(title)}: {_cell(reason)}</li>" for title, reason in reasons.items())
    return f"<details><summary>Not drawn ({len(reasons)})</summary><ul>{items}</ul></details>\n"


def desk(report: "DeskReport | None") -> str:
    """What a desk asks of the test part; of a version without rows a sentence."""
    if report is None:
        body = "<p>No rows of its test part are kept with this version.</p>\n"
    else:
        body = "".join(_table(each.title, each.heads, each.rows) for each in desk_tables(report))
        body += "<ul>" + "".join(f"<li>{_cell(each)}</li>" for each in report.notes) + "</ul>\n"
    return f'<section aria-labelledby="desk-of">\n<h2 id="desk-of">Desk report</h2>\n{body}</section>\n'


def tables(card: "ModelCard") -> str:
    """The figures of the test part, costs, certificate and lineage."""
    return _test(card) + _costs(card) + _certificate(card) + _lineage(card)


def _test(card: "ModelCard") -> str:
    evaluation = card.evaluation
    names = list(evaluation.baselines)
    rows = [
        [metric, value, *(evaluation.baselines[name].get(metric) for name in names)]
        for metric, value in evaluation.test.items()
    ]
    found = _table("Every figure of the test part, beside the baselines' on the same rows", ["", "model", *names], rows)
    if evaluation.comparisons:
        compared = [
            [each.baseline, spelt(each.loss), each.model_loss, each.baseline_loss, each.skill, each.decisive.p_value,
             each.decisive.num_moments]
            for each in evaluation.comparisons
        ]  # fmt: skip
        heads = ["baseline", "loss", "model", "baseline's", "skill", "p-value", "moments"]
        found += _table("Comparisons; p-values are one-sided, before they bear further hypotheses", heads, compared)
    if evaluation.significance is not None:
        significance = evaluation.significance
        found += _pairs(
            {
                "Hardest to beat": significance.baseline,
                "p-value after all hypotheses": f"{_number(significance.adjusted_p_value)} (at most "
                f"{significance.alpha:g} passes; {significance.looks} hypotheses)",
                "Power": f"{significance.power:.0%} for an effect of {_number(significance.effect)} "
                f"({spelt(significance.effect_kind)})",
            }
        )
    found += _validated(evaluation)
    return f'<section aria-labelledby="test-of">\n<h2 id="test-of">Test part</h2>\n{found}</section>\n'


def _validated(evaluation: "Evaluation") -> str:
    """What more splits of the time before the test part say, where the request asked for them."""
    found = ""
    if evaluation.walk_forward is not None:
        rows = [
            [f"{each.test_start:%Y-%m-%d} to {each.test_end:%Y-%m-%d}", each.num_train, each.num_test,
             *each.skill.values()]
            for each in evaluation.walk_forward.folds
        ]  # fmt: skip
        names = list(evaluation.walk_forward.folds[0].skill)
        found += _table(
            "Walk forward, before the test part", ["tested", "learnt from", "rows", *map(spelt, names)], rows
        )
    if evaluation.combinatorial is not None:
        found += _paths(evaluation.combinatorial)
    return found


def _paths(report: "CombinatorialReport") -> str:
    names = list(report.skill)
    paths = [
        [each.number, each.sharpe, each.net_log_return, *(each.skill[name] for name in names)] for each in report.paths
    ]
    groups = [
        [f"{each.start:%Y-%m-%d} to {each.end:%Y-%m-%d}", each.num_test, each.net_log_return,
         *(each.skill.get(name) for name in names)]
        for each in report.groups
    ]  # fmt: skip
    beside = [f"skill against {spelt(name)}" for name in names]
    title = (
        f"Combinations: {report.num_trainings} trainings, each without {report.test_groups} of {len(report.groups)} "
        "groups of the time before the test part, and judged on them"
    )
    return _table(f"{title}; paths through the whole of it", ["path", "Sharpe a year", "net", *beside], paths) + _table(
        "Groups, in the mean of the trainings without them", ["group", "rows", "net", *beside], groups
    )


def _costs(card: "ModelCard") -> str:
    backtest = card.evaluation.backtest
    if backtest is None:
        body = "<p>Nothing is traded on this version's answers, so nothing was charged.</p>\n"
    else:
        body = _pairs(
            {
                "Net log return": f"{backtest.net_log_return:.3%}",
                "Gross log return": f"{backtest.gross_log_return:.3%}",
                "All costs": f"{backtest.total_cost:.3%}, of them swap {backtest.swap_cost:.3%}",
                "Break-even cost": "none" if backtest.break_even_cost_bp is None
                else f"{backtest.break_even_cost_bp:.2f} bp per unit of turnover",
                "Turnover and trades": f"{backtest.turnover:.1f} and {backtest.num_trades:,}",
                "Sharpe ratio a year": f"{_number(backtest.sharpe)} net, {_number(backtest.gross_sharpe)} gross",
                "Largest drawdown": f"{backtest.max_drawdown:.2%}",
                "Carry": spelt(backtest.carry or "not stated"),
            }
        )  # fmt: skip
        heads = ["symbol", "spread (pips)", "commission (bp)", "slippage (bp)", "swap long (pips)", "swap short (pips)"]
        rows = [
            [symbol, each.spread_pips, each.commission_bp, each.slippage_bp, each.swap_long_pips, each.swap_short_pips]
            for symbol, each in backtest.costs.items()
        ]
        body += _table("What was charged", heads, rows) if rows else ""
    return f'<section aria-labelledby="costs-of">\n<h2 id="costs-of">Costs</h2>\n{body}</section>\n'


def _certificate(card: "ModelCard") -> str:
    certificate = card.certificate
    if certificate is None:
        body = "<p>This version has no leakage certificate: it is older than certificates, or its type has none.</p>\n"
    else:
        proof = f" by proof: {certificate.proof}" if certificate.proof else ""
        rows = [[spelt(each.name), each.status, each.detail] for each in certificate.checks]
        body = f"<p>Leakage certificate: <b>{_cell(certificate.status)}</b>{_cell(proof)}.</p>\n"
        body += _table("Searches for what knew the future", ["check", "status", "what was found"], rows, words=True)
    return f'<section aria-labelledby="certificate-of">\n<h2 id="certificate-of">Certificate</h2>\n{body}</section>\n'


def _lineage(card: "ModelCard") -> str:
    lineage = card.lineage
    facts = {
        "Job": lineage.job_id,
        "MLflow run": lineage.run_id or "none",
        "Parent version": lineage.parent_version or "none",
        "Seeds": ", ".join(map(str, lineage.seeds)),
        "Data fingerprint": lineage.data_fingerprint,
        "Digest": card.digest,
        "Size": f"{card.size_bytes:,} bytes",
    }
    libraries = _pairs(lineage.library_versions)
    return (
        f'<section aria-labelledby="lineage-of">\n<h2 id="lineage-of">Lineage</h2>\n{_pairs(facts)}'
        f"<details><summary>Library versions</summary>{libraries}</details>\n</section>\n"
    )


def _pairs(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{_cell(name)}</dt><dd>{_cell(value)}</dd>" for name, value in facts.items() if value)
    return f"<dl>{items}</dl>\n"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], *, words: bool = False) -> str:
    """A table that scrolls by itself, with the keyboard too."""
    head = "".join(f'<th scope="col">{_cell(each)}</th>' for each in heads)
    body = "".join(
        "<tr>" + f'<th scope="row">{_cell(first)}</th>' + "".join(f"<td>{_cell(each)}</td>" for each in rest) + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" role="region" aria-label="{_cell(caption)}" tabindex="0"><table{kind}>'
        f"<caption>{_cell(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _cell(value: Any) -> str:
    text = _number(value) if value is None or isinstance(value, float) else str(value)
    return html.escape(text, quote=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
