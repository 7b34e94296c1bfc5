"""Rows as the prediction log has them, back to the coded matrix of a contract: a model can answer them again."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tabserve.contract import Contract, Feature, Rows
from tabserve.history.window import BadQuestionError
from tabserve.lifecycle.pairs import Flags

FEATURE = "feature:"
SCORE = "probability:"


def columns_of(contract: Contract, known: Sequence[str]) -> list[str]:
    """The columns of the log that make a row of the contract.

    Args:
        known: the columns that there are.

    Raises:
        BadQuestionError: where one is not there in clear.
    """
    personal = [contract.features[position].name for position in contract.personal]
    if personal:
        raise BadQuestionError(
            f"the log has no value of the personal features {', '.join(personal)}, only their hash or nothing: "
            "rows cannot be answered again from it; evaluate on a labelled file, with --data"
        )
    columns = [FEATURE + name for name in contract.names]
    missing = [column.removeprefix(FEATURE) for column in columns if column not in known]
    if missing:
        raise BadQuestionError(
            f"the rows of the log have no features {', '.join(missing)}, which the model needs: "
            "they were logged for another contract; evaluate on a labelled file, with --data"
        )
    return columns


def coded(contract: Contract, batch: pa.RecordBatch | pa.Table) -> tuple[Rows, Flags]:
    """Rows of shape (n, features), and which of them the contract allows: the service would refuse the others.

    Raises:
        BadQuestionError: where a column is of another kind.
    """
    rows = np.empty((len(batch), len(contract.features)))
    is_allowed = np.ones(len(batch), bool)
    for position, feature in enumerate(contract.features):
        column = batch.column(FEATURE + feature.name)
        values, is_known = _category(column, feature) if feature.kind == "category" else _number(column, feature)
        rows[:, position] = values
        is_missing = np.isnan(values)
        is_allowed &= is_known & (feature.may_be_missing | ~is_missing)
        if feature.kind in ("number", "integer"):
            is_allowed &= is_missing | ((values >= feature.lowest) & (values <= feature.highest))
    return rows, is_allowed


def scores_of(contract: Contract, batch: pa.RecordBatch) -> npt.NDArray[np.float64]:
    """The scores as they were answered: shape (n, classes), or (n,) of a regression."""
    if contract.task == "regression":
        return _floats(batch.column("value"))
    return np.column_stack([_floats(batch.column(SCORE + key)) for key in contract.probability_keys])


def _category(column: pa.Array, feature: Feature) -> tuple[npt.NDArray[np.float64], Flags]:
    texts = column.cast(pa.string())
    codes = pc.index_in(texts, pa.array([str(category) for category in feature.categories], pa.string()))
    is_known = (codes.is_valid().to_numpy(zero_copy_only=False)) | texts.is_null().to_numpy(zero_copy_only=False)
    return _floats(codes), is_known


def _number(column: pa.Array, feature: Feature) -> tuple[npt.NDArray[np.float64], Flags]:
    try:
        return _floats(column), np.ones(len(column), bool)
    except pa.ArrowInvalid as error:
        raise BadQuestionError(
            f"the rows have {column.type}s as {feature.name}, the model expects {feature.kind} values: "
            "they were made for another contract"
        ) from error


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """With NaN where nothing is."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    values: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values
