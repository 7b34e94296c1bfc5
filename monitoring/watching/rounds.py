"""One round of the long-running monitor: both kinds judged, shown and kept, reports asked for, and the trigger.

Nothing that fails in a round ends it, nor the next: it is said in a sentence and counted. The numbers are shown before
anything is written, and the reports are made by other processes meanwhile.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring.commands import say
from monitoring.drift import Against, find_drift
from monitoring.live.version_quality import find_quality
from monitoring.models import MonitoredModel
from monitoring.reports.keeping import keep_result, tidy
from monitoring.reports.process import ReportMaker
from monitoring.reports.runs import read_runs
from monitoring.reports.wording import headline, span
from monitoring.results import DriftResult, QualityResult
from monitoring.watching.new_labels import count_new_labels
from monitoring.watching.newest import Kind, Newest
from monitoring.watching.retraining import Retrainer, read_triggers
from monitoring.watching.schedule import before
from monitoring.watching.trigger import Facts, Rules, Trigger, decide, standing
from monitoring.watching.turns import Result, Turn, look, say_failure
from tabserve import model_store
from tabserve.history.segments import SegmentColumn, segment_column
from tabserve.history.window import BadQuestionError, Which
from tabserve.model_store import ModelRefusedError
from tabserve.prediction_log.places import Place


@dataclass(frozen=True)
class Asked:
    """What is asked in each round."""

    place: Place
    of: Which
    against: Against
    window: timedelta
    quality_window: timedelta
    mature: timedelta
    by: Sequence[str]


class Rounds:
    """All rounds; one at a time.

    Args:
        makes_reports: whether Evidently's are wanted.
    """

    def __init__(
        self,
        asked: Asked,
        directory: Path,
        newest: Newest,
        *,
        rules: Rules,
        retrainer: Retrainer,
        makes_reports: bool = True,
    ) -> None:
        self._asked = asked
        self._directory = directory
        self._newest = newest
        self._rules = rules
        self._retrainer = retrainer
        self._tidying = threading.Lock()
        self.reports: ReportMaker | None = None
        if makes_reports:
            self.reports = ReportMaker(asked.place.url, self.tidy, lambda: newest.failed("reports"))

    def run(self, turn: datetime) -> None:
        """Looks at the windows that end with this turn. Raises nothing."""
        for kind in ("drift", "quality"):
            began = time.monotonic()
            try:
                found = self._look(kind, turn)
            except Exception as error:  # noqa: BLE001  # the next round tries again, whatever it was
                self._newest.failed(kind)
                say_failure(kind, error)
                continue
            finally:
                self._newest.took(kind, time.monotonic() - began)
            self._newest.found(kind, found)
            self._newest.failed(kind, len(found.failed))
            self._keep(found.results)
        try:
            self._retrain(turn)
        except Exception as error:  # noqa: BLE001  # as above
            self._newest.failed("retraining")
            say_failure("the trigger to retrain", error)

    def tidy(self) -> None:
        """As `keeping.tidy`; the schedule and the reports both ask for it.

        Raises:
            OSError: where the folder cannot be written.
        """
        with self._tidying:
            tidy(self._directory)

    def _look(self, kind: Kind, turn: datetime) -> Turn:
        asked = self._asked
        if kind == "drift":
            window = before(turn, asked.window)
            return look(
                asked.place, window, asked.of, kind, lambda m: find_drift(asked.place, m, window, asked.against)
            )
        window = before(turn - asked.mature, asked.quality_window)
        return look(
            asked.place,
            window,
            asked.of,
            kind,
            lambda m: find_quality(asked.place, m, window, list(_columns(m, asked.by))).result,
        )

    def _keep(self, results: Sequence[Result]) -> None:
        for result in results:
            say(f"{span(result)[1]:%F %T} {_kind(result)} {result.model}:{result.version}: {headline(result)}")
            try:
                folder = keep_result(result, self._directory)
                if self.reports is not None:
                    self.reports.make(folder)
            except Exception as error:  # noqa: BLE001  # as above, and the others are kept
                self._newest.failed("reports")
                say_failure(f"keeping the {_kind(result)} of {result.model}:{result.version}", error)
        try:
            self.tidy()
        except Exception as error:  # noqa: BLE001  # as above
            self._newest.failed("reports")
            say_failure("the index page", error)

    def _retrain(self, turn: datetime) -> None:
        current = self._newest.results()
        kept = [run.result for run in read_runs(self._directory).runs]
        due: dict[tuple[str, str], Sequence[str]] = {}
        for model, version, trained_at in _trained_last(current):
            try:
                facts = self._facts(model, version, trained_at=trained_at, turn=turn, kept=kept, current=current)
                due[model, version] = tuple(standing(facts, self._rules))
                decision = decide(facts, self._rules, read_triggers(self._directory, model))
                if decision.due:
                    trigger = Trigger(
                        at=facts.now,
                        turn=turn,
                        model=model,
                        version=version,
                        causes=decision.causes,
                        reasons=decision.reasons,
                        key=f"{model}:{version}:{turn:%Y-%m-%dT%H%M%SZ}:{'+'.join(decision.causes)}",
                    )
                    self._retrainer.take(trigger)
                    say(f"{turn:%F %T} retraining of {model}:{version} is due: {'; '.join(decision.reasons)}")
            except Exception as error:  # noqa: BLE001  # whatever it is, the other models are judged
                self._newest.failed("retraining")
                say_failure(f"the trigger to retrain {model}", error)
        self._newest.due(due)

    def _facts(
        self,
        model: str,
        version: str,
        *,
        trained_at: datetime,
        turn: datetime,
        kept: Sequence[Result],
        current: Sequence[Result],
    ) -> Facts:
        now = datetime.now(UTC)
        # A history without a current result is that of another day and says nothing of now; nor does one that somebody
        # kept by hand, of a window that ends later than ours.
        ends = {type(r): span(r)[1] for r in current if (r.model, r.version) == (model, version)}
        of_version = [
            r
            for r in (*kept, *current)
            if (r.model, r.version) == (model, version) and type(r) in ends and span(r)[1] <= ends[type(r)]
        ]
        # By the end of the window: what is current was kept as well, if it could be.
        drift = {span(r)[1]: r for r in of_version if isinstance(r, DriftResult)}
        quality = {span(r)[1]: r for r in of_version if isinstance(r, QualityResult)}
        labels = 0
        if self._rules.new_labels:
            labels = count_new_labels(self._asked.place, model, trained_at, now, self._rules.new_labels)
        return Facts(
            model=model,
            version=version,
            now=now,
            turn=turn,
            trained_at=trained_at,
            drift=[drift[until] for until in sorted(drift)],
            quality=[quality[until] for until in sorted(quality)],
            new_labels=labels,
        )


def _trained_last(results: Sequence[Result]) -> Iterator[tuple[str, str, datetime]]:
    """Of each model the version that was trained last, and when."""
    newest: dict[str, tuple[datetime, str]] = {}
    for result in results:
        try:
            trained_at = model_store.find(f"{result.model}:{result.version}").created_at
        except ModelRefusedError:  # deleted since
            continue
        newest[result.model] = max(newest.get(result.model, (trained_at, result.version)), (trained_at, result.version))
    for model, (trained_at, version) in newest.items():
        yield model, version, trained_at


def _columns(model: MonitoredModel, names: Sequence[str]) -> Iterator[SegmentColumn]:
    """Of several models not all have the column that somebody wants to see one of them by."""
    for name in dict.fromkeys(names):
        try:
            yield segment_column(model.contract, name)
        except BadQuestionError as error:
            say_failure(f"quality of {model.tag} by {name}", error)


def _kind(result: Result) -> Kind:
    return "drift" if isinstance(result, DriftResult) else "quality"
