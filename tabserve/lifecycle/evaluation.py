"""Champion against challenger on labelled rows: of the prediction log, or of a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from tabserve.contract import Contract
from tabserve.history.records import opened
from tabserve.history.segments import SegmentColumn, segment_column
from tabserve.history.sql import quoted, text
from tabserve.history.window import BadQuestionError, Which, Window
from tabserve.lifecycle.comparison import Comparison, compare
from tabserve.lifecycle.contenders import Contenders, answers
from tabserve.lifecycle.effects import Metric, UndefinedMetricError, metrics_of
from tabserve.lifecycle.logged_rows import FEATURE, coded, columns_of
from tabserve.lifecycle.pairs import Pairs
from tabserve.prediction_log.places import Place
from tabserve.training.columns import BadTableError
from tabserve.training.table import read_frame

MOST_ROWS = 200_000  # the newest; the bootstrap of so many takes a minute
CAME_TRUE = "came true"


@dataclass(frozen=True)
class Evaluation:
    """What was compared, and what was found."""

    contenders: Contenders
    pairs: Pairs
    comparison: Comparison
    source: str
    since: datetime | None
    """The oldest row that may count; None of a file."""
    n_refused: int
    """Rows that one of the models would refuse, and that are left out."""


def evaluate_log(
    of: Contenders, place: Place, window: Window, by: Sequence[str], metric: Metric | None = None
) -> Evaluation:
    """On the rows of a window that neither model was trained on, whichever version of the champion's model answered.

    Args:
        by: columns whose parts are looked at apart, all features where none is named.

    Raises:
        BadQuestionError: where the rows cannot be answered again, or the metric is undefined on them.
        UnreadableError: where the log cannot be read.
    """
    contract = of.champion.contract
    since = max(window.since, of.trained_until)
    labels = ", ".join(text(str(label)) for label in contract.classes)
    is_usable = "isfinite(true_value)" if contract.task == "regression" else f"true_label IN ({labels})"
    with opened(place, window, Which(of.champion.tag.partition(":")[0])) as records:
        known = next(records.batches("SELECT * FROM joined LIMIT 0")).schema.names
        names = {FEATURE + name for name in contract.names}
        parts = _parts(contract, by) if names <= set(known) else []
        if any(name.startswith(FEATURE) for name in known):  # else there is no row yet
            columns = sorted({*columns_of(contract, known), *columns_of(of.challenger.contract, known)})
            asked = ", ".join([*map(quoted, columns), *_always(contract, parts)])
            found = list(
                records.batches(
                    f"SELECT {asked} FROM joined WHERE {is_usable} AND variant <> 'shadow' "
                    f"AND time >= TIMESTAMPTZ {text(since.isoformat())} AND contract_hash = {text(contract.hash)} "
                    f"ORDER BY time DESC LIMIT {MOST_ROWS}"
                )
            )
        else:
            found = []
    pairs, n_refused = _paired(of, found, parts)
    return Evaluation(of, pairs, _compared(pairs, metric), place.name, since, n_refused)


def evaluate_file(of: Contenders, path: Path, by: Sequence[str], metric: Metric | None = None) -> Evaluation:
    """On the rows of a file with the features and the target; whoever names it says that no model was trained on it.

    Raises:
        BadQuestionError: where the file has not what the models need, or one was trained on this very file.
    """
    contract = of.champion.contract
    try:
        frame, source = read_frame(path)
    except BadTableError as error:
        raise BadQuestionError(str(error)) from error
    for model in (of.champion, of.challenger):
        if model.metadata["dataset"]["sha256"] == source.sha256:
            raise BadQuestionError(f"{model.tag} was trained on {path}, whose rows it has seen: take others")
    wanted = {*contract.names, *of.challenger.contract.names, contract.target}
    missing = sorted(wanted - set(map(str, frame.columns)))
    if missing:
        raise BadQuestionError(f"{path} has no columns {', '.join(missing)}, which the models need")
    frame = frame[frame[contract.target].notna()]
    table = pa.table(
        {f"{FEATURE}{name}": pa.Array.from_pandas(frame[name]) for name in wanted - {contract.target}}
        | {"target": pa.Array.from_pandas(frame[contract.target])}
    )
    for model in (of.champion, of.challenger):
        coded(model.contract, table)  # a column of another kind is named before DuckDB meets it
    foreign = [name for name in by if name in ("variant", "label") and name not in contract.names]
    if foreign:
        raise BadQuestionError(f"a file has no {', '.join(foreign)} to part the rows by: name a feature")
    parts = _parts(contract, by)
    labels = ", ".join(text(str(label)) for label in contract.classes)
    outcome = "CAST(target AS DOUBLE) AS true_value" if contract.task == "regression" else "said AS true_label"
    # 1.0 where a column of whole numbers had a gap.
    said = "regexp_replace(CAST(target AS VARCHAR), '\\.0$', '') AS said" if contract.classes else "NULL AS said"
    is_usable = f"said IN ({labels})" if contract.classes else "isfinite(CAST(target AS DOUBLE))"
    features = [quoted(FEATURE + name) for name in sorted(wanted - {contract.target})]
    asked = ", ".join([*features, *_always(contract, parts)])
    try:
        with duckdb.connect() as connection:
            connection.register("file", table)
            reader = connection.execute(
                f"SELECT {asked} FROM (SELECT *, {outcome}, 1.0 AS weight FROM (SELECT *, {said} FROM file) "
                f"WHERE {is_usable})"
            ).to_arrow_reader()
            found = list(reader)
    except duckdb.Error as error:
        raise BadQuestionError(f"{path} is no table for {of.champion.tag}: {str(error).splitlines()[0]}") from error
    n_unusable = len(frame) - sum(len(batch) for batch in found)
    if n_unusable:
        raise BadQuestionError(f"{n_unusable} rows of {path} have a {contract.target} that no answer can have")
    pairs, n_refused = _paired(of, found, parts)
    return Evaluation(of, pairs, _compared(pairs, metric), str(path), None, n_refused)


def _compared(pairs: Pairs, metric: Metric | None) -> Comparison:
    if metric is not None and metric not in metrics_of(pairs.task):
        raise BadQuestionError(f"a {pairs.task} has no {metric}: choose {' or '.join(metrics_of(pairs.task))}")
    try:
        return compare(pairs, metric)
    except UndefinedMetricError as error:
        raise BadQuestionError(str(error)) from error


def _parts(contract: Contract, by: Sequence[str]) -> list[SegmentColumn]:
    names = by or [feature.name for feature in contract.features if not feature.personal]
    return [segment_column(contract, name) for name in dict.fromkeys(names)]


def _always(contract: Contract, parts: Sequence[SegmentColumn]) -> Iterator[str]:
    """What is asked for beside the features."""
    yield "weight"
    yield "true_value" if contract.task == "regression" else "true_label"
    yield from (f'{part.sql} AS "part:{number}"' for number, part in enumerate(parts))


def _paired(of: Contenders, batches: Iterable[pa.RecordBatch], parts: Sequence[SegmentColumn]) -> tuple[Pairs, int]:
    """Both models' answers to rows, and how many rows one of them would refuse."""
    contract = of.champion.contract
    codes = {str(label): code for code, label in enumerate(contract.classes)}
    found: list[Pairs] = []
    n_refused = 0
    for batch in batches:
        rows, is_allowed = coded(contract, batch)
        other, is_allowed_too = coded(of.challenger.contract, batch)
        allowed = is_allowed & is_allowed_too
        n_refused += int((~allowed).sum())
        if not allowed.any():
            continue
        kept = batch.filter(pa.array(allowed))
        if contract.task == "regression":
            true = kept.column("true_value").to_numpy(zero_copy_only=False)
        else:
            true = np.array([codes[label] for label in kept.column("true_label").to_pylist()], np.intp)
        segments = {
            part.name: np.array(kept.column(f"part:{number}").to_pylist(), dtype=object)
            for number, part in enumerate(parts)
        }
        if contract.classes:
            segments[CAME_TRUE] = np.array(kept.column("true_label").to_pylist(), dtype=object)
        champion, challenger = answers(of.champion, rows[allowed]), answers(of.challenger, other[allowed])
        weights = np.asarray(kept.column("weight").to_numpy(zero_copy_only=False), np.float64)
        found.append(Pairs(contract.task, true, champion, challenger, weights, segments))
    return _together(found, contract), n_refused


def _together(found: Sequence[Pairs], contract: Contract) -> Pairs:
    if not found:
        scores = np.empty(0) if contract.task == "regression" else np.empty((0, len(contract.classes)))
        return Pairs(contract.task, np.empty(0), scores, scores, np.empty(0))
    first = found[0]
    return replace(
        first,
        true=np.concatenate([one.true for one in found]),
        champion=np.concatenate([one.champion for one in found]),
        challenger=np.concatenate([one.challenger for one in found]),
        weights=np.concatenate([one.weights for one in found]),
        segments={name: np.concatenate([one.segments[name] for one in found]) for name in first.segments},
    )
