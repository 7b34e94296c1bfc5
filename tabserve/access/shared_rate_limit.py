"""Buckets that all replicas take from, in Redis. A replica that does not reach it goes on with its own."""

import asyncio
import hashlib
import logging
import time
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from tabserve.access.observer import Observer
from tabserve.access.rate_limit import RateLimit

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.05  # that Redis may take, connecting included; in one network it takes a millisecond
RETRY_SECONDS = 1.0  # in which nobody waits for a Redis that has failed
MOST_CONNECTIONS = 16  # of a worker; a request has one for less than a millisecond

# tabserve.access.rate_limit's bucket, by the clock of Redis: those of the replicas differ. Answers the seconds to wait.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local interval, ahead = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = full_at - now - ahead
if wait > 0 then return tostring(wait) end
full_at = full_at + interval
redis.call('SET', KEYS[1], string.format('%.6f', full_at), 'PX', math.ceil((full_at - now) * 1000))
return '0'
"""


class SharedBuckets:
    """The buckets of all replicas.

    Args:
        url: redis://, rediss:// or unix://; never shown, there may be a password in it.
    """

    def __init__(self, url: str, limit: RateLimit, observer: Observer) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MOST_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=None,  # a failure is an answer here
        )
        self._take: Any = Redis(connection_pool=pool).register_script(_TAKE)
        self._arguments = [limit.interval, limit.ahead]
        self._observer = observer
        self._is_away = False
        self._ask_from = 0.0

    async def take(self, who: str) -> float:
        """As `Buckets.take`; 0 where Redis does not answer, which is counted, and said once."""
        now = time.monotonic()
        if self._is_away:
            if now < self._ask_from:
                self._observer.limited_alone()
                return 0.0
            self._ask_from = now + RETRY_SECONDS  # one asks whether it is back, the others do not wait with him
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                wait = float(await self._take(keys=[_key(who)], args=self._arguments))
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            self._observer.limited_alone()
            self._ask_from = now + RETRY_SECONDS
            if not self._is_away:
                self._is_away = True
                logger.error("Redis does not answer (%s): each worker limits by itself", type(error).__name__)
            return 0.0
        if self._is_away:
            self._is_away = False
            logger.warning("Redis answers again: all replicas share the rate limit")
        return wait


def _key(who: str) -> str:
    """What a caller is called in Redis, where his address is nobody's business."""
    return f"tabserve:rate:{hashlib.blake2b(who.encode(), digest_size=12).hexdigest()}"
