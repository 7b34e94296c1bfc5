"""What a model is trained on again: the table of its first training, and the labelled rows of a window behind it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from tabserve.contract import Contract
from tabserve.lifecycle.labelled_rows import WindowRows
from tabserve.training import evaluation
from tabserve.training.arguments import Arguments
from tabserve.training.columns import BadTableError
from tabserve.training.table import Table

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What a model may have seen already."""

    table_at: datetime
    """When the table was trained on, by this model or the first that it comes from."""
    window_until: datetime | None
    """The end of the window that this model was retrained on."""

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self:
        lineage = metadata.get("lineage")
        if lineage is None:
            return cls(datetime.fromisoformat(metadata["trained_at"]), None)
        return cls(
            datetime.fromisoformat(lineage["table_trained_on_at"]), datetime.fromisoformat(lineage["window"]["until"])
        )


def original_table(told: Arguments, contract: Contract, sha256: str, moved: Path | None) -> Table:
    """The table that a model was first trained on.

    Args:
        moved: where it is now, if it is no longer where it was.

    Raises:
        BadTableError: where it is not there, or another one, or makes another contract.
    """
    if moved is not None and told.data is None:
        raise BadTableError("--original: the model was trained on the built-in table, which needs no file")
    if moved is None and told.data is not None and not Path(told.data).exists():
        raise BadTableError(f"{told.data}, which the model was trained on, is not here: say where with --original FILE")
    table = told.read_table(moved)
    if table.source.sha256 != sha256:
        raise BadTableError(
            f"{moved or told.data or 'the built-in table'} is not what the model was trained on: expected the SHA-256 "
            f"{sha256}, got {table.source.sha256}; say where that is with --original FILE, or train with train.py"
        )
    if table.contract.hash != contract.hash:
        raise BadTableError("this version of tabserve makes another contract of the table: train with train.py")
    return table


def with_window(table: Table, found: WindowRows, known: Known, *, original_share: float | None, seed: int) -> Table:
    """Both in one table, whose latest rows are the window's.

    Args:
        found: at least as many rows as a test can be made of.
        original_share: percent of the training rows that may be the table's, above 0 and below 100; which ones is
            chance. None for all that there are.
    """
    n_test = evaluation.n_test_of(len(found))
    begin = found.times.iloc[-n_test]
    warnings = []
    if begin < known.table_at:
        warnings.append("Some test rows are older than the training on the table: those that are in it too flatter.")
    if known.window_until is not None and begin < known.window_until:
        warnings.append("Some test rows may have trained the model that it comes from: a comparison favours that one.")
    kept = np.arange(len(table.rows))
    if table.times is not None and isinstance(table.times.dtype, pd.DatetimeTZDtype):
        kept = kept[(table.times < begin).to_numpy()]
        if len(kept) < len(table.rows):
            warnings.append(f"{len(table.rows) - len(kept)} rows of the table are left out: the test rows are older.")
    if original_share is not None:
        most = int((len(found) - n_test) * original_share / (100 - original_share))
        kept = np.sort(np.random.default_rng(seed).permutation(kept)[:most])
    for warning in warnings:
        logger.warning(warning)
    return replace(
        table,
        rows=np.concatenate([table.rows[kept], found.rows]),
        target=np.concatenate([table.target[kept], found.target]),
        times=pd.concat([pd.Series([found.times.iloc[0]] * len(kept)), found.times], ignore_index=True),
        source=replace(
            table.source, description=f"{table.source.description}, and {len(found)} rows of the prediction log"
        ),
        warnings=(*table.warnings, *warnings),
        n_recent=len(found),
    )
