"""One look at the log: every model version that answered in a window, judged apart; what fails hides no other."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from monitoring.commands import FAULTS
from monitoring.models import MonitoredModel, load, versions_in
from monitoring.results import DriftResult, QualityResult
from tabserve.history.records import UnreadableError
from tabserve.history.window import Which, Window
from tabserve.prediction_log.places import Place

logger = logging.getLogger("monitoring.watch")

Result = DriftResult | QualityResult


@dataclass(frozen=True)
class Turn:
    """What was found, and whose judgement failed."""

    results: tuple[Result, ...]
    failed: tuple[str, ...]
    """Tags."""

    @property
    def is_failure(self) -> bool:
        """Whether nothing of what was there could be judged; where nothing was there, nothing failed."""
        return bool(self.failed) and not self.results


def look(place: Place, window: Window, of: Which, kind: str, judge: Callable[[MonitoredModel], Result]) -> Turn:
    """Judges the versions that the log has in the window.

    Raises:
        BadQuestionError: where DuckDB is missing.
        UnreadableError: where the log cannot be read, or is not there: a mistyped address looks like no traffic.
    """
    if not place.is_remote and not place.folder.is_dir():
        raise UnreadableError(f"there is no prediction log at {place.name}: a service makes it when it starts")
    results: list[Result] = []
    failed: list[str] = []
    for version in versions_in(place, window, of):
        try:
            results.append(judge(load(str(version.model), version.version)))
        except Exception as error:  # noqa: BLE001  # whatever it is, the other versions are judged
            failed.append(f"{version.model}:{version.version}")
            say_failure(f"{kind} of {failed[-1]}", error)
    return Turn(tuple(results), tuple(failed))


def say_failure(what: str, error: Exception) -> None:
    """One sentence; of a fault that nobody thought of, where it came from too."""
    if isinstance(error, FAULTS):
        logger.error("%s failed: %s", what, error)
    else:
        logger.error("%s failed with %s: %s", what, type(error).__name__, error, exc_info=error)
