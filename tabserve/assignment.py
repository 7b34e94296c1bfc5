"""Who is asked of two models: a share of the requests goes to the challenger, by chance or always the same callers.

Where a choice is sticky, a key has a fixed place in [0, 1) in each experiment and is in where the place is below the
share: on every worker, machine and after every restart the same, and who is in at 5 % stays in at 25 %.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabserve.contract import Contract, Feature, Rows
from tabserve.prediction_log.predictions import CHALLENGER, CHAMPION, CONTROL
from tabserve.rollout_state import HEADER, BadRolloutError, Challenger
from tabserve.served_model import ServedModel

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, eq=False)
class Arm:
    """A model, and what it is to the requests that it answers: `champion`, `control` or `challenger`."""

    model: ServedModel
    variant: str


def experiment_of(champion: str, challenger: Challenger) -> str:
    """What the places of keys depend on: all that makes two experiments different, and not the share."""
    return json.dumps([challenger.mode, champion, challenger.model, challenger.by])


def place_of(experiment: str, key: str) -> float:
    """The place of a key in an experiment, in [0, 1): independent of its place in every other one."""
    digest = hashlib.blake2b(f"{experiment}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: what a float in [0, 1) holds exactly


class Split:
    """Chooses between champion and challenger while a canary or an A/B test is in place.

    Raises:
        BadRolloutError: where it is to be sticky by a feature that the contract does not have.
    """

    def __init__(self, champion: ServedModel, model: ServedModel, said: Challenger) -> None:
        self._experiment = experiment_of(champion.tag, said)
        self._share = said.share / 100
        self._header, self._feature = key_of(said.by, champion.loaded.contract)
        self._features = champion.loaded.contract.features
        self.champion = Arm(champion, CHAMPION)
        self.challenger = Arm(model, CHALLENGER)
        self._others = Arm(champion, CONTROL) if said.mode == "ab" else self.champion

    @property
    def is_by_row(self) -> bool:
        return self._feature is not None

    def of_request(self, headers: Headers) -> Arm:
        """Who answers a request, where that does not depend on its rows."""
        if self._header is None:
            return self.challenger if random.random() < self._share else self._others  # noqa: S311
        for name, value in headers:
            if name == self._header and (key := value.strip()):
                return self._of_key(key.decode("latin-1"))
        return self.champion

    def of_rows(self, rows: Rows) -> Sequence[Arm]:
        """Who answers each row, shape (n, features), where that depends on a feature."""
        position = self._feature or 0
        feature = self._features[position]
        return [
            self.champion if math.isnan(value) else self._of_key(_text(feature, value))
            for value in rows[:, position].tolist()
        ]

    def _of_key(self, key: str) -> Arm:
        return self.challenger if place_of(self._experiment, key) < self._share else self._others


def key_of(by: str | None, contract: Contract) -> tuple[bytes | None, int | None]:
    """The header (lower case), or the position of the feature, that a choice is sticky by; neither where by chance.

    Raises:
        BadRolloutError: where there is no such feature.
    """
    if by is None:
        return None, None
    if by.startswith(HEADER):
        return by.removeprefix(HEADER).lower().encode(), None
    if by not in contract.names:
        raise BadRolloutError(f"by: {by!r} is no feature of the model, and no {HEADER}NAME")
    return None, contract.names.index(by)


def _text(feature: Feature, value: float) -> str:
    """A value as a key: the same whatever the model, the kind of number that was sent, or the sign of a zero."""
    if feature.kind == "category":
        return str(feature.categories[int(value)])
    return str(int(value)) if value.is_integer() else repr(value)
