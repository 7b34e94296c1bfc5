"""The values at which alerts ring, as the panels draw them.

Those of slo.yaml, of monitoring.verdict and of tabserve.settings are taken from there; the others stand here.
"""

from dataclasses import dataclass

from loadtest import slo
from monitoring.verdict import ENOUGH_LABELS, ENOUGH_ROWS, KL_ALARM, PSI_ALARM, WARNING
from tabserve.settings import Settings

ALARM_COLOUR, WARNING_COLOUR = "red", "orange"

CPU_CORES = 0.8  # of the busiest process, which has one event loop and so one core
REJECTED_REQUESTS = 0.05  # share of the requests that break the contract
OUT_OF_RANGE = 0.05  # share of the values of a feature
UNKNOWN = 0.01  # share of the values of a feature
MONITOR_AGE_SECONDS = 3 * 3600.0  # three times the schedule, an hour


@dataclass(frozen=True)
class Limit:
    """A line in a panel, in the panel's unit."""

    value: float
    colour: str = ALARM_COLOUR


def of_latency() -> tuple[Limit, ...]:
    """In seconds, one for each percentile that slo.yaml has."""
    limits = [one.limit_ms / 1000 for one in slo.from_file().values() if isinstance(one, slo.Latency)]
    return tuple(Limit(seconds) for seconds in sorted(limits))


def of_errors() -> tuple[Limit, ...]:
    """The share of the requests that may fail, as slo.yaml has it."""
    return tuple(Limit(one.limit_percent / 100) for one in slo.from_file().values() if isinstance(one, slo.Errors))


def of_spool() -> tuple[Limit, ...]:
    """In bytes: half of what the local disk may hold for a bucket or a database, by default."""
    return (Limit(Settings().log_spool_bytes / 2, WARNING_COLOUR),)


OF_KL = (Limit(WARNING * KL_ALARM, WARNING_COLOUR), Limit(KL_ALARM))
OF_PSI = (Limit(WARNING * PSI_ALARM, WARNING_COLOUR), Limit(PSI_ALARM))
OF_ROWS = (Limit(ENOUGH_ROWS, WARNING_COLOUR),)
OF_LABELS = (Limit(ENOUGH_LABELS, WARNING_COLOUR),)
OF_CPU = (Limit(CPU_CORES, WARNING_COLOUR),)
OF_REJECTED = (Limit(REJECTED_REQUESTS, WARNING_COLOUR),)
OF_OUT_OF_RANGE = (Limit(OUT_OF_RANGE, WARNING_COLOUR),)
OF_UNKNOWN = (Limit(UNKNOWN, WARNING_COLOUR),)
OF_AGE = (Limit(MONITOR_AGE_SECONDS, WARNING_COLOUR),)
OF_RETRAINING = (Limit(1.0, WARNING_COLOUR),)
