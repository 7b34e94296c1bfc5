"""What becomes of twice the load that the service can take: how much is answered, how fast the rest is refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.benchmark.load import closed_loop, open_loop

WARM_UP_SECONDS = 2.0
PEAK_CONNECTIONS = 128
OVERLOAD_CONNECTIONS = 2048


@dataclass(frozen=True)
class Overload:
    """One model at twice its peak."""

    what: str
    peak: float
    """Answers a second of a closed loop."""
    asked: float
    answered: float
    """Answers a second, each within its deadline."""
    refused: float
    p50_ms: float
    p99_ms: float
    refusal_p50_ms: float
    refusal_p99_ms: float
    """From the sending of a request to its 503."""
    without_retry_after: int
    other: int
    """What was neither 200 nor 503."""

    @property
    def share(self) -> float:
        return self.answered / self.peak


async def overload(what: str, port: int, requests: Sequence[bytes], *, seconds: float, seed: int) -> Overload:
    """Finds the peak, then asks twice as often in an open loop."""
    await closed_loop(port, requests, connections=PEAK_CONNECTIONS, seconds=WARM_UP_SECONDS)
    peak = (await closed_loop(port, requests, connections=PEAK_CONNECTIONS, seconds=seconds)).rate
    found = await open_loop(port, requests, rate=2 * peak, seconds=seconds, seed=seed, connections=OVERLOAD_CONNECTIONS)
    return Overload(
        what=what,
        peak=peak,
        asked=2 * peak,
        answered=found.rate,
        refused=found.refused.get(503, 0) / found.duration,
        p50_ms=found.quantile_ms(0.5),
        p99_ms=found.quantile_ms(0.99),
        refusal_p50_ms=found.refusal_quantile_ms(0.5),
        refusal_p99_ms=found.refusal_quantile_ms(0.99),
        without_retry_after=found.without_retry_after,
        other=found.failed - found.refused.get(503, 0),
    )
