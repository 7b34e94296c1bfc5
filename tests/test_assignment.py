"""Who is asked of two models: fixed places, shares, keys, and what is left to the champion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CUSTOMERS, TrainedModels
from prediction_log_parts import opened, predictions, records

from tabserve.assignment import Split, experiment_of, key_of, place_of
from tabserve.contract import Feature
from tabserve.prediction_log.personal import Personal
from tabserve.prediction_log.predictions import SHADOW
from tabserve.prediction_log.waiting import WaitingPredictions
from tabserve.rollout_state import BadRolloutError, Challenger, RolloutState
from tabserve.served_model import ServedModel, made_ready
from tabserve.settings import Settings

KEYS = [f"user-{number}" for number in range(20_000)]


def challenger(**said: object) -> Challenger:
    return Challenger.model_validate({"model": "m:2", "mode": "canary", "share": 5, **said})


def test_the_place_of_a_key_is_the_same_in_every_version_of_this_program() -> None:
    """Written down, because nobody would notice on one machine that a running experiment was dealt anew."""
    experiment = experiment_of("m:1", challenger(mode="ab", by="header:x-user-id"))

    assert experiment == '["ab", "m:1", "m:2", "header:x-user-id"]'
    assert place_of(experiment, "user-1") == 0.22328003094189552


def test_who_is_in_at_a_small_share_stays_in_at_a_larger_one() -> None:
    small, large = (experiment_of("m:1", challenger(share=share, by="id")) for share in (5, 25))
    assert small == large
    places = np.array([place_of(small, key) for key in KEYS])

    assert 0 <= places.min() < places.max() < 1
    for share in (0.05, 0.25, 0.5):
        assert abs((places < share).mean() - share) < 3 * (share * (1 - share) / len(KEYS)) ** 0.5


@pytest.mark.parametrize("other", [{"model": "m:3"}, {"mode": "ab"}, {"by": "header:b"}])
def test_two_experiments_deal_independently(other: dict) -> None:
    one = np.array([place_of(experiment_of("m:1", challenger(by="header:a")), key) for key in KEYS])
    two = np.array([place_of(experiment_of("m:1", challenger(**{"by": "header:a", **other})), key) for key in KEYS])

    both = ((one < 0.5) & (two < 0.5)).mean()
    assert abs(both - 0.25) < 3 * (0.25 * 0.75 / len(KEYS)) ** 0.5


@pytest.fixture(scope="module")
def customers_model(models: TrainedModels) -> ServedModel:
    return made_ready(models.load(CUSTOMERS), Settings())


def split_of(model: ServedModel, **said: object) -> Split:
    other = replace(model, loaded=replace(model.loaded, tag="customers:9"))
    return Split(model, other, challenger(model="customers:9", **said))


def test_a_header_is_found_however_it_is_written_and_without_one_the_champion_answers(
    customers_model: ServedModel,
) -> None:
    split = split_of(customers_model, mode="ab", by="header:X-User-Id", share=100)

    assert split.of_request([(b"a", b"b"), (b"x-user-id", b" 7 ")]).variant == "challenger"
    for headers in ([], [(b"x-user-id", b"  ")], [(b"x-user", b"7")]):
        assert split.of_request(headers).variant == "champion"
    almost_nobody = split_of(customers_model, mode="ab", by="header:X-User-Id", share=1e-9)
    assert almost_nobody.of_request([(b"x-user-id", b"7")]).variant == "control"


def test_rows_are_assigned_by_their_own_value_and_a_missing_one_is_the_champions(customers_model: ServedModel) -> None:
    contract = customers_model.loaded.contract
    feature = next(one for one in contract.features if one.may_be_missing)
    split = split_of(customers_model, by=feature.name, share=100)
    rows = np.zeros((2, len(contract.features)))
    rows[1, contract.names.index(feature.name)] = np.nan

    assert split.is_by_row
    assert [arm.variant for arm in split.of_rows(rows)] == ["challenger", "champion"]


def test_what_nobody_can_be_sticky_by_is_refused(customers_model: ServedModel) -> None:
    with pytest.raises(BadRolloutError, match="'income2' is no feature of the model, and no header:NAME"):
        key_of("income2", customers_model.loaded.contract)
    for said, sentence in (
        ("mode: ab, share: 50", "an A/B test needs `by`"),
        ("mode: shadow, share: 50, by: a", "a shadow has no `by`"),
        ("mode: canary, share: 5, by: 'header:'", "'header:' names no header"),
        ("mode: canary, share: 5, by: 'header:a b'", "names no header"),
    ):
        with pytest.raises(BadRolloutError, match=sentence):
            RolloutState.parse(f"champion: m:1\nchallenger: {{model: 'm:2', {said}}}")


@pytest.mark.parametrize(
    ("kind", "values", "texts"),
    [
        ("number", [1.0, 0.1, -0.0, 0.0], ["1", "0.1", "0", "0"]),
        ("integer", [7.0], ["7"]),
        ("boolean", [0.0, 1.0], ["0", "1"]),
        ("category", [1.0], ["Oslo"]),
    ],
)
def test_equal_values_are_equal_keys(kind: str, values: list[float], texts: list[str]) -> None:
    from tabserve.assignment import _text

    feature = Feature(name="a", kind=kind, categories=("Bergen", "Oslo") if kind == "category" else ())

    assert [_text(feature, value) for value in values] == texts


# --- a shadow's records


def test_where_a_share_is_kept_a_shadows_record_is_kept_where_the_champions_is(tmp_path: Path) -> None:
    log = opened(tmp_path.as_uri(), tmp_path, log_sample=0.3)
    for _ in range(300):
        told = predictions()
        log.put(told, 0.001)
        log.put(replace(told, variant=SHADOW, model_version="plans:2"), 0.001)
    log.close()

    kept = {variant: set() for variant in ("champion", "shadow")}
    for one in records(tmp_path.as_uri()):
        kept[one["variant"]].add(one["prediction_id"])
    assert kept["champion"] == kept["shadow"]
    assert 50 < len(kept["champion"]) < 130


def test_a_shadow_takes_at_most_half_of_the_room_of_what_callers_were_told() -> None:
    waiting = WaitingPredictions(10, 1.0, Personal(None))
    for _ in range(10):
        waiting.put(replace(predictions(), variant=SHADOW), 0.001)
    assert waiting.n_rows == 5
    for _ in range(10):
        waiting.put(predictions(), 0.001)

    assert waiting.n_rows == 10
    assert waiting.take_dropped_rows() == 10
