"""The compiled form of a pipeline's preprocessing: a few array operations in float64, kept as JSON beside the model."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from tabserve.contract import Rows

Values = npt.NDArray[np.float64]

Operation = Literal["subtract", "divide", "multiply", "add", "fill", "is_missing", "one_hot", "look_up", "rank"]


class Step(BaseModel):
    """One operation on a block of columns.

    `values` holds, by operation: a number a column (subtract, divide, multiply, add, fill); nothing (is_missing);
    for each column the codes that get a column of their own, None for missing (one_hot); for each column what stands
    for code 0, 1, … and, last, for missing (look_up); for each column ascending thresholds, of which those below a
    value are counted (rank).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation: Operation
    values: list[float] | list[list[float | None]] = []


class Block(BaseModel):
    """Some columns of the rows, and what is done to them, one step after the other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: list[int]
    steps: list[Step] = []


class Preprocessing(BaseModel):
    """Blocks whose results stand side by side: the input of the estimator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks: list[Block]

    def function(self) -> Callable[[Rows], Values]:
        """A function from rows, shape (n, features), to the estimator's input, shape (n, inputs)."""
        functions = [_block_function(block) for block in self.blocks]
        if len(functions) == 1:
            return functions[0]
        return lambda rows: np.hstack([function(rows) for function in functions])


def _block_function(block: Block) -> Callable[[Rows], Values]:
    columns = np.array(block.columns, dtype=np.intp)
    in_order = block.columns == list(range(len(block.columns)))
    steps = [_step_function(step) for step in block.steps]

    def run(rows: Rows) -> Values:
        # Taking columns copies them; a block of all columns in order needs no copy.
        values = rows if in_order and rows.shape[1] == len(columns) else rows[:, columns]
        for step in steps:
            values = step(values)
        return values

    return run


def _step_function(step: Step) -> Callable[[Values], Values]:
    if step.operation == "is_missing":
        return lambda values: np.isnan(values).astype(np.float64)
    if step.operation == "one_hot":
        return _one_hot(step)
    if step.operation == "look_up":
        return _look_up(step)
    if step.operation == "rank":
        return _rank(step)
    operand = np.array(step.values, dtype=np.float64)
    match step.operation:
        case "subtract":
            return lambda values: values - operand
        case "divide":
            return lambda values: values / operand
        case "multiply":
            return lambda values: values * operand
        case "add":
            return lambda values: values + operand
        case "fill":
            return lambda values: np.where(np.isnan(values), operand, values)


def _one_hot(step: Step) -> Callable[[Values], Values]:
    by_column = [[np.nan if code is None else code for code in codes] for codes in _lists(step)]
    sources = np.array([source for source, codes in enumerate(by_column) for _ in codes], dtype=np.intp)
    codes = np.array([code for codes in by_column for code in codes], dtype=np.float64)
    is_for_missing = np.isnan(codes)

    def run(values: Values) -> Values:
        spread = values[:, sources]
        return np.where(is_for_missing, np.isnan(spread), spread == codes).astype(np.float64)

    return run


def _look_up(step: Step) -> Callable[[Values], Values]:
    tables = [np.array([np.nan if value is None else value for value in table]) for table in _lists(step)]

    def run(values: Values) -> Values:
        found = np.empty(values.shape)
        for column, table in enumerate(tables):
            codes = np.where(np.isnan(values[:, column]), len(table) - 1, values[:, column]).astype(np.intp)
            found[:, column] = table[codes]
        return found

    return run


def _rank(step: Step) -> Callable[[Values], Values]:
    thresholds = [np.array(of_column, dtype=np.float64) for of_column in _lists(step)]

    def run(values: Values) -> Values:
        ranks = np.empty(values.shape)
        for column, of_column in enumerate(thresholds):
            ranks[:, column] = of_column.searchsorted(values[:, column])
        ranks[np.isnan(values)] = np.nan
        return ranks

    return run


def _lists(step: Step) -> list[list[float | None]]:
    return [value for value in step.values if isinstance(value, list)]
