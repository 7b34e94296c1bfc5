"""Logged traffic answered again by another model: what would have been said, without a label.

In batches: memory does not grow with the rows. Quantiles are of a sample of the changes that all rows have an equal
chance to be in; the largest change and all shares are of all rows.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tabserve import model_store
from tabserve.contract import Contract, Rows
from tabserve.engine import Scores
from tabserve.history.records import opened
from tabserve.history.sql import quoted, text
from tabserve.history.window import Which, Window
from tabserve.lifecycle.contenders import Contenders, answers
from tabserve.lifecycle.logged_rows import FEATURE, SCORE, coded, columns_of, scores_of
from tabserve.lifecycle.pairs import Floats
from tabserve.model_store import LoadedModel
from tabserve.prediction_log.places import Place
from tabserve.reference import Bins, Reference
from tabserve.statistics.divergence import psi

SAMPLE = 200_000  # changes that quantiles are of: the 99.9 % quantile rests on 200 of them
QUANTILES = (0.5, 0.9, 0.99, 0.999)
ROUNDING = 1e-12  # rows in other batches are summed in another order, which moves the last digits
ENGINE_ROWS = 512  # of a call, the most that a request has


@dataclass(frozen=True)
class Answered:
    """Some rows, as they were answered, and as both models answer them now."""

    ids: list[str]
    weights: Floats
    said: Scores
    champion: Scores
    challenger: Scores
    seconds: tuple[float, float]
    """That the engines of champion and challenger took."""
    n_refused: int
    """Rows that the challenger would refuse, and that are not among these."""


class _Sample:
    """Changes, each with an equal chance to be kept: those with the smallest of random numbers."""

    def __init__(self) -> None:
        self._kept = np.empty((0, 3))  # the random number, the change, its weight

    def add(self, changes: Floats, weights: Floats, random: np.random.Generator) -> None:
        self._kept = np.concatenate([self._kept, np.stack([random.random(len(changes)), changes, weights], axis=1)])
        if len(self._kept) > SAMPLE:
            self._kept = self._kept[np.argpartition(self._kept[:, 0], SAMPLE)[:SAMPLE]]

    def quantiles(self) -> dict[float, float]:
        """Weighted: the least change up to which so large a share of the weight lies."""
        _, changes, weights = self._kept[np.argsort(self._kept[:, 1], kind="stable")].T
        below = np.cumsum(weights)
        places = np.searchsorted(below, np.array(QUANTILES) * below[-1])
        return {share: float(changes[place]) for share, place in zip(QUANTILES, places, strict=True)}


@dataclass
class Replay:
    """What a model would have said to the rows that another one answered. Weights count, where the log is a sample."""

    n_rows: int = 0
    weight: float = 0.0
    n_refused: int = 0
    labels: dict[tuple[str, str], float] = field(default_factory=dict)
    """Weight of the rows by the label that was said and the other model's."""
    largest: float = 0.0
    """Change of a probability, or of the value."""
    largest_id: str = ""
    """The prediction that has it."""
    total: float = 0.0
    """Weighted sum of the changes of all rows, each the largest of its probabilities."""
    counts: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    """Of each score, the weighted rows in the bins of the training: as it was answered, and now."""
    seconds: tuple[float, float] = (0.0, 0.0)
    off: float = 0.0
    """How far the model that answered is from its own answers in the log, at most: 0 but for other arithmetic."""
    sample: _Sample = field(default_factory=_Sample)

    @property
    def changed(self) -> float:
        """Share of the rows whose label would be another."""
        return sum(weight for (said, now), weight in self.labels.items() if said != now) / self.weight

    @property
    def divergence(self) -> dict[str, float]:
        """PSI between both predictions, by class."""
        return {name: psi(before, now) for name, (before, now) in self.counts.items()}

    def add(self, rows: Answered, contract: Contract, bins: dict[str, Bins], random: np.random.Generator) -> None:
        self.n_refused += rows.n_refused
        if not rows.ids:
            return
        change = _distance(rows.challenger, rows.said)
        self.n_rows += len(rows.ids)
        self.weight += float(rows.weights.sum())
        self.total += float(rows.weights @ change)
        self.seconds = (self.seconds[0] + rows.seconds[0], self.seconds[1] + rows.seconds[1])
        self.off = max(self.off, float(_distance(rows.champion, rows.said).max()))
        if change.max() > self.largest:
            self.largest, self.largest_id = float(change.max()), rows.ids[int(change.argmax())]
        self.sample.add(change, rows.weights, random)
        if contract.classes:
            for said, now in {
                *zip(rows.said.argmax(axis=1).tolist(), rows.challenger.argmax(axis=1).tolist(), strict=True)
            }:
                is_it = (rows.said.argmax(axis=1) == said) & (rows.challenger.argmax(axis=1) == now)
                key = str(contract.classes[said]), str(contract.classes[now])
                self.labels[key] = self.labels.get(key, 0.0) + float(rows.weights[is_it].sum())
        columns = (
            [(rows.said, rows.challenger)]
            if not contract.classes
            else list(zip(rows.said.T, rows.challenger.T, strict=True))
        )
        for name, (before, now) in zip(contract.probability_keys or ("value",), columns, strict=True):
            counted = tuple(_counted(bins[name], scores, rows.weights) for scores in (before, now))
            known = self.counts.get(name, (np.zeros_like(counted[0]), np.zeros_like(counted[1])))
            self.counts[name] = known[0] + counted[0], known[1] + counted[1]


def replay(of: Contenders, place: Place, window: Window) -> Replay:
    """Has the challenger answer the rows that the champion answered in a window.

    Raises:
        BadQuestionError: where the rows cannot be answered again.
        UnreadableError: where the log cannot be read.
    """
    contract = of.champion.contract
    name, _, version = of.champion.tag.partition(":")
    bins = Reference.load(model_store.find(of.champion.tag).directory / model_store.REFERENCE_FILE).predictions
    found, random = Replay(), np.random.default_rng(0)
    with opened(place, window, Which(name, version)) as records:
        known = next(records.batches("SELECT * FROM predictions LIMIT 0")).schema.names
        if not any(column.startswith(FEATURE) for column in known):
            return found  # there is no row
        columns = {*columns_of(contract, known), *columns_of(of.challenger.contract, known)}
        columns |= {SCORE + key for key in contract.probability_keys} or {"value"}
        asked = ", ".join(map(quoted, ["prediction_id", "weight", *sorted(columns)]))
        condition = f"contract_hash = {text(contract.hash)} AND variant <> 'shadow'"
        for batch in records.batches(f"SELECT {asked} FROM predictions WHERE {condition}"):
            found.add(_answered(of, batch), contract, bins, random)
    return found


def _answered(of: Contenders, batch: pa.RecordBatch) -> Answered:
    own, _ = coded(of.champion.contract, batch)
    rows, is_allowed = coded(of.challenger.contract, batch)
    kept = batch.filter(pa.array(is_allowed))
    if not len(kept):
        nothing = scores_of(of.champion.contract, kept)
        return Answered([], np.empty(0), nothing, nothing, nothing, (0.0, 0.0), len(batch))
    champion, champion_seconds = _timed(of.champion, own[is_allowed])
    challenger, challenger_seconds = _timed(of.challenger, rows[is_allowed])
    return Answered(
        ids=kept.column("prediction_id").to_pylist(),
        weights=np.asarray(kept.column("weight").to_numpy(zero_copy_only=False), np.float64),
        said=scores_of(of.champion.contract, kept),
        champion=champion,
        challenger=challenger,
        seconds=(champion_seconds, challenger_seconds),
        n_refused=int((~is_allowed).sum()),
    )


def _timed(model: LoadedModel, rows: Rows) -> tuple[Scores, float]:
    answers(model, rows[:1])  # what a first call costs is no row's
    started = time.perf_counter()
    parts = [answers(model, rows[first : first + ENGINE_ROWS]) for first in range(0, len(rows), ENGINE_ROWS)]
    return np.concatenate(parts), time.perf_counter() - started


def _distance(scores: Scores, said: Scores) -> Floats:
    """The change of each row, shape (n,): the largest of its probabilities; 0 where only arithmetic differs."""
    change = np.abs(scores - said)
    change[change <= ROUNDING * np.maximum(1.0, np.abs(said))] = 0.0
    return change if change.ndim == 1 else np.asarray(change.max(axis=1), np.float64)


def _counted(bins: Bins, scores: Floats, weights: Floats) -> npt.NDArray[np.float64]:
    """Weighted rows a bin; weights have few values, one for each share of the requests that was kept."""
    of_weights = [weight * np.array(bins.count(scores[weights == weight])) for weight in np.unique(weights)]
    return np.asarray(np.sum(of_weights, axis=0), np.float64)


def text_of(found: Replay, of: Contenders, window: str) -> str:
    """What was found, as a page that a person can read."""
    lines = [f"{of.challenger.tag} on the rows that {of.champion.tag} answered in the last {window}"]
    if found.n_refused:
        lines.append(f"{found.n_refused:,} rows are left out: {of.challenger.tag} would refuse them")
    if not found.n_rows:
        return "\n".join([*lines, "no row that it could answer"])
    stand_for = "" if found.weight == found.n_rows else f", which stand for {found.weight:,.0f}"
    lines += ["", f"rows            {found.n_rows:,}{stand_for}"]
    what = "value"
    if found.labels:
        what = "probability"
        lines.append(f"another label   {found.changed:.2%}")
        flips = sorted((-weight, pair) for pair, weight in found.labels.items() if pair[0] != pair[1])
        lines += [
            f"                {-weight / found.weight:7.2%}  {said} → {now}" for weight, (said, now) in flips[:10]
        ]
    quantiles = ", ".join(f"p{100 * share:g} {change:.4g}" for share, change in found.sample.quantiles().items())
    lines.append(
        f"change of the {what}: mean {found.total / found.weight:.4g}, {quantiles}, largest {found.largest:.4g}"
    )
    if found.largest:
        lines.append(f"                the largest is of prediction {found.largest_id}")
    lines += [f"PSI             {value:.4f}  {name}" for name, value in found.divergence.items()]
    before, now = (1e6 * seconds / found.n_rows for seconds in found.seconds)
    lines.append(
        f"µs a row        {now:.1f}, the champion {before:.1f} (engine alone, calls of up to {ENGINE_ROWS} rows)"
    )
    lines.append(f"the champion answers as the log has it, to {found.off:.1g}")
    return "\n".join(lines)
