"""What a run found: values that are printed, exported as gauges, kept as JSON beside the reports, and read back."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from monitoring.verdict import KL_ALARM, PSI_ALARM, Binned, Divergence, Level


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DriftWindow(_Result):
    """One window of one model version. Shares are of the weighted rows."""

    since: datetime
    until: datetime
    n_rows: int
    rows_a_second: float
    """Weighted, over the whole window."""
    rejected_share: float
    """Values that broke the contract, of these and the rows that were answered, weighted. A refused row may have
    several such values, and refuses the others of its request: this is not a share of requests.
    """
    confidence: float | None
    """The mean of the largest probability; None for a regression, or without rows."""


class DriftColumn(_Result):
    """One feature, or one score of the predictions, in two windows, the newest last."""

    name: str
    what: Literal["feature", "prediction"]
    level: Level
    reference: Binned
    """Of the newest window; against last week each window has its own."""
    windows: tuple[Binned, ...]
    divergences: tuple[Divergence, ...]
    missing_share: float
    """Of the newest window; so are the shares below."""
    reference_missing_share: float
    out_of_range_share: float
    """Outside of what training saw; 0 for what is no number."""
    unknown_share: float
    """Values of a category that training did not see, of all that came: they are refused."""

    @property
    def method(self) -> Literal["kl", "psi"]:
        """What decides: PSI of predictions, KL of features."""
        return "psi" if self.what == "prediction" else "kl"

    @property
    def drift(self) -> float:
        """How far the newest window is from the reference, by the method that decides."""
        return self._decides(self.divergences[-1])

    @property
    def drift_before(self) -> float:
        """The same of the window before it."""
        return self._decides(self.divergences[0])

    @property
    def threshold(self) -> float:
        """What the drift of the newest window has to exceed: the threshold, or chance where that is more."""
        return max(PSI_ALARM if self.method == "psi" else KL_ALARM, self.divergences[-1].by_chance)

    def _decides(self, divergence: Divergence) -> float:
        return divergence.psi if self.method == "psi" else divergence.kl


class DriftResult(_Result):
    """What one run found of one model version."""

    model: str
    version: str
    against: Literal["training", "last-week"]
    made_at: datetime
    level: Level
    """The worst of the columns; `too few rows` where the newest window has."""
    windows: tuple[DriftWindow, ...]
    columns: tuple[DriftColumn, ...]
    not_watched: dict[str, str] = {}
    """Features that could not be looked at, each with the reason."""


class QualityMetric(_Result):
    """A number, its 95 % interval, and what it was at training: on the test rows, of a segment out-of-fold."""

    name: str
    value: float
    low: float
    high: float
    baseline: float | None


class QualitySegment(_Result):
    """The rows of one value of the segment column; of all rows where `column` is None."""

    column: str | None
    value: str | None
    n_labelled: int
    metrics: tuple[QualityMetric, ...]
    level: Level
    because: str = ""
    """What made the level, as a sentence."""
    left_out: tuple[str, ...] = ()
    """A sentence for metrics that these rows leave undefined."""


class QualityResult(_Result):
    """What one run found of one model version."""

    model: str
    version: str
    made_at: datetime
    since: datetime
    until: datetime
    level: Level
    """The worst of the segments; `too few rows` where all rows together are."""
    n_rows: int
    n_labelled: int
    coverage: float
    """Share of the predictions, weighted, that have a label."""
    estimated_accuracy: float | None
    """From the scores alone, of all rows; right only as far as they are calibrated. None for a regression."""
    estimate_of_labelled: float | None
    """The same estimate of the labelled rows alone, to be held against the accuracy that they turned out to have."""
    estimate_holds: bool | None = None
    """Whether that accuracy bears the estimate out; None with too few labels to say, and for a regression."""
    segments: tuple[QualitySegment, ...]
    """All rows first, then worst first."""
    n_baseline: int = 0
    """Test rows that the baselines of all rows are of."""
    n_sampled: int = 0
    """Labelled rows that all metrics but accuracy and F1 are of: a uniform sample where there are very many."""
    n_unusable_labels: int = 0
    """Labels that are none of the model's: another class, no number."""
    label_delay_seconds: dict[str, float] = {}
    """How long after their prediction the labels came: `p50` and `p90`."""
