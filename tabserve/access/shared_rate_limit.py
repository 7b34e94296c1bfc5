"""Buckets that all replicas take from, in Redis. A replica that does not reach it goes on with its own."""

import asyncio
import hashlib
import logging
import time
from typing import Any

from redis.asyncio import Redis

from tabserve.access.observer import Observer
from tabserve.access.rate_limit import RateLimit

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.05  # that a question may take; in one network it takes a millisecond
CONNECT_SECONDS = 1.0  # that connecting may take, for which no caller waits: some 50 ms on a busy machine
RETRY_SECONDS = 1.0  # from one try to the next while it is away
MOST_AT_ONCE = 500  # callers in one question, which keep Redis from others for a millisecond

# The buckets of tabserve.access.rate_limit, by Redis's clock: those of replicas differ. Answers the seconds to wait.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local interval, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local waits = {}
for place, bucket in ipairs(KEYS) do
  local full_at = math.max(tonumber(redis.call('GET', bucket) or now), now)
  local wait = full_at - now - ahead
  if wait <= 0 then
    wait = 0
    full_at = full_at + interval
    redis.call('SET', bucket, string.format('%.6f', full_at), 'PX', math.ceil((full_at - now) * 1000))
  end
  waits[place] = tostring(wait)
end
return waits
"""


class SharedBuckets:
    """The buckets of all replicas. One question is under way at a time; who comes meanwhile goes with the next.

    Args:
        url: redis://, rediss:// or unix://; never shown, there may be a password in it.
    """

    def __init__(self, url: str, limit: RateLimit, observer: Observer) -> None:
        self._redis: Any = Redis.from_url(
            url, socket_timeout=CONNECT_SECONDS, socket_connect_timeout=CONNECT_SECONDS, retry=None
        )
        self._take: Any = self._redis.register_script(_TAKE)
        self._arguments = [limit.interval, limit.ahead]
        self._observer = observer
        self._waiting: list[tuple[str, asyncio.Future[float]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._is_away = False
        self._ask_from = 0.0

    def start(self) -> None:
        """Connects, so that the first caller does not find that it takes too long. Called on the event loop."""
        self._connecting = asyncio.create_task(self._connect())

    async def take(self, who: str) -> float:
        """As `Buckets.take`; 0 where Redis does not answer, which is counted, and said once."""
        if self._is_away:
            if time.monotonic() >= self._ask_from:
                self._ask_from = time.monotonic() + CONNECT_SECONDS + RETRY_SECONDS
                self.start()
            self._observer.limited_alone()
            return 0.0
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((_bucket(who), answer))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await answer

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._redis.script_load(_TAKE)
        except Exception:  # noqa: BLE001  # whatever it is: the next question says so
            self._ask_from = time.monotonic() + RETRY_SECONDS
            return
        if self._is_away:
            self._is_away = False
            logger.warning("Redis answers again: all replicas share the rate limit")

    async def _ask(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                for (_, answer), wait in zip(asked, await self._waits([who for who, _ in asked]), strict=True):
                    if not answer.done():  # its caller may have gone
                        answer.set_result(wait)
        finally:
            self._asking = None

    async def _waits(self, buckets: list[str]) -> list[float]:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                waits = [float(wait) for wait in await self._take(keys=buckets, args=self._arguments)]
        except Exception as error:  # noqa: BLE001  # whatever it is, callers wait for an answer
            for _ in buckets:
                self._observer.limited_alone()
            self._ask_from = time.monotonic() + RETRY_SECONDS
            if not self._is_away:
                self._is_away = True
                logger.error("Redis cannot be asked (%s): each replica limits by itself", type(error).__name__)
            return [0.0] * len(buckets)
        return waits


def _bucket(who: str) -> str:
    """What a caller is called in Redis, where his address is nobody's business; in one slot, should it be a cluster."""
    return f"{{tabserve}}:rate:{hashlib.blake2b(who.encode(), digest_size=12).hexdigest()}"
