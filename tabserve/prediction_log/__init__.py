"""What remembers predictions: the front door puts them here, a thread writes them, a reader finds them.

front door → `PredictionLog.put` → queue → writer → journal → segment → roller → Parquet → sink
"""

from tabserve.prediction_log.predictions import (
    CannotKeepError,
    NoPredictionLog,
    NoRoomError,
    PredictionLog,
    Predictions,
)

__all__ = ["CannotKeepError", "NoPredictionLog", "NoRoomError", "PredictionLog", "Predictions"]
