"""Callers of one row, without and beside a client that keeps asking for 512 at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.benchmark.load import Measured, closed_loop, open_loop


@dataclass(frozen=True)
class Fairness:
    """The callers of one row in one round. Milliseconds."""

    callers: str
    alone_p50_ms: float
    alone_p99_ms: float
    beside_p50_ms: float
    beside_p99_ms: float
    large_rate: float
    """Requests of 512 rows a second, meanwhile."""

    @property
    def ratio(self) -> float:
        return self.beside_p99_ms / self.alone_p99_ms


async def fairness(
    port: int, small: Sequence[bytes], large: Sequence[bytes], *, connections: int, seconds: float
) -> Fairness:
    """Callers of one row over so many connections, first alone, then beside the large one."""
    alone = await closed_loop(port, small, connections=connections, seconds=seconds)
    beside, other = await asyncio.gather(
        closed_loop(port, small, connections=connections, seconds=seconds),
        closed_loop(port, large, connections=1, seconds=seconds),
    )
    return _compared(f"{connections} connections", alone, beside, other)


async def fairness_open(
    port: int, small: Sequence[bytes], large: Sequence[bytes], *, rate: float, seconds: float, seed: int
) -> Fairness:
    """The same with callers that come at a rate, whatever the answers take."""
    alone = await open_loop(port, small, rate=rate, seconds=seconds, seed=seed)
    beside, other = await asyncio.gather(
        open_loop(port, small, rate=rate, seconds=seconds, seed=seed),
        closed_loop(port, large, connections=1, seconds=seconds),
    )
    return _compared(f"{rate:.0f} a second", alone, beside, other)


def _compared(callers: str, alone: Measured, beside: Measured, large: Measured) -> Fairness:
    return Fairness(
        callers,
        alone.quantile_ms(0.5),
        alone.quantile_ms(0.99),
        beside.quantile_ms(0.5),
        beside.quantile_ms(0.99),
        large.rate,
    )
