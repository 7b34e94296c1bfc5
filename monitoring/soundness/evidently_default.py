"""What Evidently's DataDriftPreset says with its defaults, of the same rows.

The preset takes seconds a report. Nearly all of that is for plots, so its statistics are called directly, column by
column, with its own choice among them; the run compares some days with the preset itself, and says how many agree.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

DATASET_DRIFT = 0.5  # share of the columns from which the preset speaks of the drift of the dataset

Frame = pd.DataFrame


@cache
def _evidently() -> Any:
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently.legacy.calculations.stattests import registry
    from evidently.legacy.core import ColumnType

    return registry, ColumnType


def drifted(reference: Frame, current: Frame, categories: Sequence[str], method: str | None = None) -> list[bool]:
    """Whether each column is flagged, as the preset cleans columns, chooses a statistic and its threshold.

    Args:
        method: the name of a statistic, instead of the automatic choice.
    """
    registry, column_type = _evidently()
    found = []
    for name in reference.columns:
        kind = column_type.Categorical if name in categories else column_type.Numerical
        old, new = (frame[name].replace([-np.inf, np.inf], np.nan).dropna() for frame in (reference, current))
        test = registry.get_stattest(old, new, kind, method)
        found.append(bool(test(old, new, kind, None).drifted))
    return found


def by_the_preset(reference: Frame, current: Frame, categories: Sequence[str]) -> list[bool]:
    """The same by the preset itself."""
    _evidently()
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    numbers = [name for name in reference.columns if name not in categories]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=list(categories))
    old, new = (Dataset.from_pandas(frame, data_definition=definition) for frame in (reference, current))
    flagged = {}
    for metric in Report([DataDriftPreset()]).run(new, old).dict()["metrics"]:
        config = metric["config"]
        if "column" in config:
            value, threshold = float(metric["value"]), float(config["threshold"])
            is_p_value = "p_value" in str(config["method"])
            flagged[config["column"]] = value < threshold if is_p_value else value >= threshold
    return [flagged[name] for name in reference.columns]


def alarms(days: Sequence[Sequence[bool]], *, running: int) -> list[list[bool]]:
    """Whether each column is flagged on so many days running, day after day."""
    flags = np.array(days)
    found = flags.copy()
    for earlier in range(1, running):
        found[:earlier] = False
        found[earlier:] &= flags[:-earlier]
    return [list(map(bool, day)) for day in found]
