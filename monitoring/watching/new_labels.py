"""How many labels came for the predictions that a model made since a version of it was trained."""

from datetime import datetime

from tabserve.history.records import opened
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place


def count_new_labels(place: Place, model: str, since: datetime, until: datetime, enough: int) -> int:
    """Labelled predictions of all versions of a model, as far as the log goes back; `enough` where there are more.

    Raises:
        BadQuestionError: where DuckDB is missing.
        UnreadableError: where the log cannot be read.
    """
    if since >= until:
        return 0
    with opened(place, Window(since, until), Which(model)) as records:
        # With a limit the predictions are only read until there are enough.
        ((found,),) = records.rows(
            "SELECT count(*) FROM (SELECT 1 FROM predictions SEMI JOIN labels USING (prediction_id) "
            f"LIMIT {int(enough)})"
        )
    return int(str(found))
