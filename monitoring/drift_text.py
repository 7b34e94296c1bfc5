"""A drift result as a page of the terminal: what drifted first, then the verdict in a line."""

from monitoring.results import DriftColumn, DriftResult, DriftWindow
from monitoring.verdict import ENOUGH_ROWS, Level

NOTED_SHARE = 0.01  # of values outside of what training saw, or refused as unknown; less is not worth a line
MOST_NAMES = 5  # in a line
MARKS: dict[Level, str] = {"alarm": "ALARM", "warning": "warning", "quiet": "quiet", "too few rows": "too few"}


def text_of(result: DriftResult) -> str:
    """The result as a table of the columns in alarm or warning, and what else there is to know, a line each."""
    newest = result.windows[-1]
    span = " to ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in (newest.since, newest.until))
    against = "training" if result.against == "training" else "the same hours a week earlier"
    lines = [f"{result.model}:{result.version}  {span} UTC, against {against}", _rows(newest), ""]
    shown = [column for column in result.columns if column.level in ("alarm", "warning")]
    if shown:
        lines += [*_table(shown), ""]
    quiet = [column for column in result.columns if column.level == "quiet"]
    if quiet:
        worst = quiet[0]
        lines.append(f"quiet: {_n(len(quiet), 'column')}; the largest is {worst.name}, {_drift(worst)}")
    lines += _noted(result)
    if result.not_watched:
        reasons = [f"{name} ({reason})" for name, reason in result.not_watched.items()]
        lines.append(f"not watched: {_first(reasons)}")
    return "\n".join([*lines, verdict(result)]) + "\n"


def verdict(result: DriftResult) -> str:
    """The verdict as a line."""
    alarms = [column.name for column in result.columns if column.level == "alarm"]
    warnings = [column.name for column in result.columns if column.level == "warning"]
    if result.level == "too few rows":
        if any(column.windows[-1].n_rows >= ENOUGH_ROWS for column in result.columns):
            return f"TOO FEW ROWS TO SAY: fewer than {ENOUGH_ROWS} a week earlier"
        rows = max((column.windows[-1].n_rows for column in result.columns), default=result.windows[-1].n_rows)
        return f"TOO FEW ROWS TO SAY: {rows:,.0f}, expected {ENOUGH_ROWS} at least"
    if alarms:
        many = f"{_n(len(alarms), 'column')} of {len(result.columns)}"
        return f"ALARM: {many} drifted, two windows running: {_first(alarms)}"
    if warnings:
        return f"WARNING: {_n(len(warnings), 'column')} of {len(result.columns)} to look at: {_first(warnings)}"
    return f"QUIET: {_n(len(result.columns), 'column')}, none drifted"


def _rows(window: DriftWindow) -> str:
    words = [f"{window.n_rows:,} rows, {window.rows_a_second:,.3g} a second"]
    if window.confidence is not None:
        words.append(f"mean confidence {window.confidence:.3f}")
    words.append(f"{window.rejected_share:.2%} of the values rejected")
    return ", ".join(words)


def _table(columns: list[DriftColumn]) -> list[str]:
    """As plain text; the first two columns say all that must be read."""
    rows = [("", "column", "drift now", "before", "alarm above", "missing", "in the reference")]
    for column in columns:
        before = column.divergences[0]
        rows.append(
            (
                MARKS[column.level],
                column.name if column.what == "feature" else f"{column.name} (predicted)",
                _drift(column),
                "too few rows" if before.level == "too few rows" else f"{column.drift_before:.3f}",
                f"{column.threshold:.3f}",
                f"{column.missing_share:.1%}",
                f"{column.reference_missing_share:.1%}",
            )
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _noted(result: DriftResult) -> list[str]:
    """What no drift statistic sees."""
    noted = []
    for what, shares in (
        ("outside of the range seen in training", {c.name: c.out_of_range_share for c in result.columns}),
        ("refused, a category that training did not see", {c.name: c.unknown_share for c in result.columns}),
    ):
        high = sorted(((share, name) for name, share in shares.items() if share >= NOTED_SHARE), reverse=True)
        if high:
            noted.append(f"{what}: {_first([f'{name} {share:.1%}' for share, name in high])}")
    return noted


def _drift(column: DriftColumn) -> str:
    return f"{column.method.upper()} {column.drift:.3f}"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _n(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
