"""The two models of a comparison: loaded and checked, and whether they can be compared at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tabserve import model_store
from tabserve.contract import Rows
from tabserve.engine import Scores, finite
from tabserve.history.window import BadQuestionError
from tabserve.model_store import LoadedModel, ModelRefusedError
from tabserve.rollout import choose_model
from tabserve.settings import Settings


@dataclass(frozen=True)
class Contenders:
    """Both answer the same question: task and classes are the same."""

    champion: LoadedModel
    challenger: LoadedModel

    @property
    def trained_until(self) -> datetime:
        """The newest moment whose rows one of them may have seen."""
        return max(trained_until(model.metadata) for model in (self.champion, self.challenger))


def contenders(challenger: str, champion: str | None, *, may_be_the_same: bool = False) -> Contenders:
    """The models of these tags; without a champion's, the one that is served.

    Raises:
        BadQuestionError: where one cannot be loaded, or they answer different questions.
    """
    try:
        of = model_store.find(challenger)
        against = model_store.find(champion) if champion else choose_model(Settings.from_environment())
        if of.tag == against.tag and not may_be_the_same:
            raise BadQuestionError(f"{of.tag} is the champion itself: name another version, or one with --against")
        pair = Contenders(model_store.load(against), model_store.load(of))
    except ModelRefusedError as error:
        raise BadQuestionError(str(error)) from error
    mine, other = pair.champion.contract, pair.challenger.contract
    if (mine.task, mine.classes) != (other.task, other.classes):
        raise BadQuestionError(
            f"{pair.champion.tag} and {pair.challenger.tag} answer different questions: "
            f"{_question(mine.task, mine.classes)}, and {_question(other.task, other.classes)}"
        )
    return pair


def answers(model: LoadedModel, rows: Rows) -> Scores:
    """What a model says to rows, shape (n, features).

    Raises:
        BadQuestionError: where it raises, or does not say finite numbers to each row: that is no verdict.
    """
    try:
        scores = finite(model.engine.predict(rows))
    except Exception as error:  # of a model anything can be broken
        raise BadQuestionError(f"{model.tag} fails on these rows ({type(error).__name__}: {error})") from error
    if len(scores) != len(rows):
        raise BadQuestionError(f"{model.tag} fails on these rows (it gave {len(scores)} scores for {len(rows)})")
    return scores


def trained_until(metadata: Mapping[str, Any]) -> datetime:
    """The newest moment whose rows a model may have seen: the end of its window of the log, else its training."""
    lineage = metadata.get("lineage") or {}
    until = (lineage.get("window") or {}).get("until") or metadata["trained_at"]
    moment = datetime.fromisoformat(until)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _question(task: str, classes: tuple[Any, ...]) -> str:
    return f"{task} of {', '.join(map(str, classes[:5]))}{', …' if len(classes) > 5 else ''}" if classes else task
