"""What a window of the prediction log says in numbers. Each prediction counts with its weight."""

from dataclasses import dataclass, field

from tabserve.history.records import Records
from tabserve.history.window import Window
from tabserve.prediction_log.labels import LABELS
from tabserve.prediction_log.places import OPEN, Place
from tabserve.prediction_log.rejections import REJECTIONS
from tabserve.prediction_log.sources import PREDICTIONS

MOST_LINES = 20  # of one kind


@dataclass(frozen=True)
class Stats:
    """The numbers. Shares are of the weighted rows, times are in seconds."""

    n_rows: int = 0
    weighted_rows: float = 0.0
    rows_a_second: float = 0.0
    """Weighted, since the first of them."""
    versions: list[tuple[str, int, float]] = field(default_factory=list)
    """`name:version`, rows, share."""
    predicted: list[tuple[str, str | None, float, float | None]] = field(default_factory=list)
    """`name:version`, label, its share of that version; None and the mean value for a regression."""
    shadows: list[tuple[str, int]] = field(default_factory=list)
    """`name:version` of challengers in the shadow, and how many rows they were asked; in no other number here."""
    latency_ms: dict[float, float] = field(default_factory=dict)
    coverage: float = 0.0
    n_labelled: int = 0
    delay_seconds: dict[float, float] = field(default_factory=dict)
    n_unknown_labels: int | None = None
    """Of ids that were made in the window, or are none of ours. None where not all models were looked at."""
    rejections: list[tuple[str, str | None, str, int]] = field(default_factory=list)
    """Route, feature, rule, how often."""


def stats_of(records: Records, window: Window, *, of_all_models: bool) -> Stats:
    """Asks for the numbers; those of predictions stay 0 where there are none."""
    rejections = records.rows(
        "SELECT route, feature, rule, CAST(sum(count) AS BIGINT) AS n FROM rejections "
        f"GROUP BY ALL ORDER BY n DESC, route, feature, rule LIMIT {MOST_LINES}"
    )
    unknown = records.rows(_unknown(window))[0][0] if of_all_models else None
    ((n_rows, weighted, first),) = records.rows("SELECT count(*), sum(weight), epoch(min(time)) FROM predictions")
    shadows = records.rows(
        "SELECT model || ':' || version AS tag, count(*) AS n FROM shadows "
        f"GROUP BY tag ORDER BY n DESC, tag LIMIT {MOST_LINES}"
    )
    found: dict[str, object] = {"rejections": rejections, "n_unknown_labels": unknown, "shadows": shadows}
    if n_rows:
        ((n_labelled, labelled),) = records.rows(
            "SELECT count(*), coalesce(sum(weight), 0) FROM joined WHERE labelled_at IS NOT NULL"
        )
        found |= {
            "n_rows": n_rows,
            "weighted_rows": weighted,
            "rows_a_second": weighted / max(1.0, window.until.timestamp() - first),  # type: ignore[operator]
            "versions": records.rows(
                "SELECT model || ':' || version AS tag, count(*), sum(weight) / sum(sum(weight)) OVER () AS share "
                f"FROM predictions GROUP BY tag ORDER BY share DESC, tag LIMIT {MOST_LINES}"
            ),
            "predicted": records.rows(
                "SELECT model || ':' || version AS tag, CAST(label AS VARCHAR) AS said, "
                "sum(weight) / sum(sum(weight)) OVER (PARTITION BY tag) AS share, sum(value * weight) / sum(weight) "
                f"FROM predictions GROUP BY tag, said ORDER BY tag, share DESC, said LIMIT {MOST_LINES}"
            ),
            "latency_ms": weighted_quantiles(records, "latency_ms", "predictions", (0.5, 0.99)),
            "n_labelled": n_labelled,
            "coverage": labelled / weighted,  # type: ignore[operator]
            "delay_seconds": weighted_quantiles(
                records, "epoch(labelled_at) - epoch(time)", "joined WHERE labelled_at IS NOT NULL", (0.5, 0.9)
            ),
        }
    return Stats(**found)  # type: ignore[arg-type]


def weighted_quantiles(records: Records, of: str, rows: str, shares: tuple[float, ...]) -> dict[float, float]:
    """Weighted: the least number up to which so large a share of the weight lies. Empty where there is no row."""
    asked = ", ".join(f"min(x) FILTER (WHERE below >= {share} * total)" for share in shares)
    found = records.rows(f"""
        WITH counted AS (SELECT round({of}, 3) AS x, sum(weight) AS w FROM {rows} GROUP BY x),
        summed AS (SELECT x, sum(w) OVER (ORDER BY x) AS below, sum(w) OVER () AS total FROM counted)
        SELECT {asked} FROM summed
    """)  # our own texts
    return {share: x for share, x in zip(shares, found[0], strict=True) if isinstance(x, float)}


def _unknown(window: Window) -> str:
    """Labels of ids that were made in the window and are no prediction of it. An id of ours, UUIDv7, begins with the
    milliseconds since 1970; of another nobody knows when it was made, and it is no prediction's.
    """
    first, last = window.since.timestamp() * 1000, window.until.timestamp() * 1000
    return f"""
        SELECT count(*) FROM (
            SELECT prediction_id AS id FROM latest ANTI JOIN predictions USING (prediction_id)
        ) WHERE id[15] <> '7' OR CAST('0x' || id[1:8] || id[10:13] AS BIGINT) BETWEEN {first:.0f} AND {last:.0f}
    """  # our own numbers


def text_of(stats: Stats, window: Window, title: str) -> str:
    """The numbers as a page that a person can read."""
    span = " to ".join(
        moment.isoformat(" ", "seconds").removesuffix("+00:00") for moment in (window.since, window.until)
    )
    lines = [f"{title}, {span} UTC", ""]
    if stats.n_rows == 0:
        lines += ["predictions  none yet"]
    else:
        weighted = "" if stats.weighted_rows == stats.n_rows else f", which stand for {stats.weighted_rows:,.0f}"
        lines += [f"predictions  {stats.n_rows:,}{weighted}; {stats.rows_a_second:,.2f} a second since the first"]
        lines += _block("versions", [f"{share:7.2%}  {tag} ({n_rows:,})" for tag, n_rows, share in stats.versions])
        lines += _block("predicted", [_predicted(*line) for line in stats.predicted])
        lines += [f"latency      p50 {stats.latency_ms[0.5]:.2f} ms, p99 {stats.latency_ms[0.99]:.2f} ms"]
        delay = ", ".join(f"p{100 * share:.0f} {duration(s)}" for share, s in stats.delay_seconds.items())
        came = f"; they came after {delay}" if delay else ""
        lines += [f"labels       {stats.coverage:.2%} of the predictions have one ({stats.n_labelled:,}){came}"]
    if stats.n_unknown_labels:
        lines += [f"             {stats.n_unknown_labels:,} labels are of predictions that are not in the log"]
    lines += _block("in shadow", [f"{n_rows:7,}  {tag}, in none of these numbers" for tag, n_rows in stats.shadows])
    rejections = [
        f"{n:7,}  {route}  {f'{feature}: ' if feature else ''}{rule}" for route, feature, rule, n in stats.rejections
    ]
    return "\n".join([*lines, *_block("rejections", rejections or ["none"])])


def _predicted(tag: str, label: str | None, share: float, mean: float | None) -> str:
    return f"{share:7.2%}  {label}  {tag}" if mean is None else f"mean {mean:g}  {tag}"


def _block(name: str, lines: list[str]) -> list[str]:
    return [f"{name if number == 0 else '':<13}{line}" for number, line in enumerate(lines)]


def duration(seconds: float) -> str:
    """A time as a person says it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size_of(place: Place) -> str:
    """What the place takes on the disk, and how far back it goes, as a line."""
    n_bytes = n_files = n_open = 0
    days = set()
    for table in (PREDICTIONS, LABELS, REJECTIONS):
        for path in (place.folder / table).rglob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # rolled or deleted meanwhile
                continue
            if path.is_file():
                n_bytes += status.st_size
                n_open += path.parent.name == OPEN
                n_files += path.suffix == ".parquet"
                if path.parent.name.startswith("date="):
                    days.add(path.parent.name.removeprefix("date="))
    oldest = f", the oldest of {min(days)}" if days else ""
    return f"on the disk  {n_bytes / 1e6:,.1f} MB in {n_files:,} Parquet files and {n_open:,} open segments{oldest}"
