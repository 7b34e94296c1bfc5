"""What a batch of so many rows will cost, learnt from the batches that were."""

from collections import deque

import numpy as np
import numpy.typing as npt

REMEMBERED_BATCHES = 32  # enough to fit two numbers, few enough to forget a slow phase within a second of load
SECONDS_BETWEEN_FITS = 0.005  # of the engine: a fit takes about 0.1 ms, 2 % of that
MIN_FITTED_BATCHES = 8  # until then every batch counts
FIRST_BATCHES = 4  # those of the warm-up, of four sizes


class ServiceTime:
    """The time of a batch as a + b · rows, in seconds, from the recent batches; one slow batch does not move it.

    The slope is the median of the slopes between pairs of batches, the intercept the median of what is left
    (Theil 1950, Sen 1968): a quarter of the batches may be anything.
    """

    def __init__(self) -> None:
        self._rows: deque[int] = deque(maxlen=REMEMBERED_BATCHES)
        self._seconds: deque[float] = deque(maxlen=REMEMBERED_BATCHES)
        self._seconds_since_fit = 0.0
        self._first: list[tuple[int, float]] = []
        self.fixed = 0.0
        """The a, in seconds, not below zero."""
        self.per_row = 0.0
        """The b, in seconds a row, not below zero."""

    def observe(self, n_rows: int, seconds: float) -> None:
        if len(self._first) < FIRST_BATCHES:
            self._first.append((n_rows, seconds))
        self._rows.append(n_rows)
        self._seconds.append(seconds)
        self._seconds_since_fit += seconds
        if self._seconds_since_fit >= SECONDS_BETWEEN_FITS or len(self._rows) < MIN_FITTED_BATCHES:
            self._seconds_since_fit = 0.0
            self._fit()

    def of(self, n_rows: int) -> float:
        """Expected seconds of a batch; 0.0 before the first one was seen."""
        return self.fixed + self.per_row * n_rows

    def _fit(self) -> None:
        rows, seconds = np.array(self._rows, dtype=np.float64), np.array(self._seconds)
        if len(self._first) == FIRST_BATCHES:
            # Under load all batches may be of one size, which tells one number and not two; and when the speed changes
            # the small ones may be the slow ones. So the first batches always count too, at the speed of today.
            first_rows, first_seconds = np.array(self._first, dtype=np.float64).T
            line = _line(first_rows, first_seconds)
            if line is not None and sum(line) > 0.0:
                speed = _median(seconds / (line[0] + line[1] * rows))
                rows, seconds = np.concatenate([rows, first_rows]), np.concatenate([seconds, first_seconds * speed])
        self.fixed, self.per_row = _line(rows, seconds) or (_median(seconds), 0.0)


def _line(rows: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    """Intercept and slope, neither below zero; None where the batches are all of about one size."""
    first, second = np.triu_indices(len(rows), k=1)
    # Of two batches of about one size chance says which took longer, and divided by a few rows that is no slope.
    apart = np.maximum(rows[first], rows[second]) >= 2 * np.minimum(rows[first], rows[second])
    if not apart.any():
        return None
    per_row = max(0.0, _median((seconds[second] - seconds[first])[apart] / (rows[second] - rows[first])[apart]))
    left = seconds - per_row * rows
    # The fixed cost shows best in the smallest batches; in large ones an error of the slope is taken for it.
    return max(0.0, min(_median(left), _median(left[rows == rows.min()]))), per_row


def _median(values: npt.NDArray[np.float64]) -> float:
    """The upper median. numpy's own imports 10 ms of numpy.ma when it is first called, in the first request."""
    return float(np.sort(values)[len(values) // 2])
