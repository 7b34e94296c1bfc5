"""The gate: whether a request may come in, asked before anything is done for it."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tabserve.access.callers import PROBES, Caller, counted_address, credential_of, needed_scope
from tabserve.access.observer import Observer, Reason
from tabserve.access.rate_limit import Buckets, RateLimit
from tabserve.access.reloaded import Reloaded
from tabserve.access.worker_buckets import WorkerBuckets
from tabserve.answers import HttpError
from tabserve.asgi import Scope

if TYPE_CHECKING:
    from tabserve.access.shared_rate_limit import SharedBuckets

Recognize = Callable[[bytes], Caller | None]
"""Whose key or token it is."""

# RFC 6750, section 3: the scheme under which both keys and tokens are taken.
CHALLENGE = 'Bearer realm="tabserve"'
UNKNOWN = 401  # nobody is recognized, or nobody any more


class Gate:
    """Recognizes callers and counts their requests.

    Args:
        recognize: each kind of key there is; none where nobody needs one.
        reloaded: the files and addresses that they are read from.
        limit: how often each caller may ask; None for as often as he wants.
        of_workers: the buckets of all workers, where there are several.
        shared: the buckets of all replicas, where they share them.
    """

    def __init__(
        self,
        observer: Observer,
        *,
        recognize: Sequence[Recognize] = (),
        reloaded: Sequence[Reloaded[Any]] = (),
        limit: RateLimit | None = None,
        of_workers: WorkerBuckets | None = None,
        shared: "SharedBuckets | None" = None,
    ) -> None:
        self._observer = observer
        self._recognize = recognize
        self._reloaded = reloaded
        self._buckets = of_workers or (Buckets(limit) if limit else None)
        self._shared = shared
        self.is_shared = shared is not None
        self.needs_keys = bool(recognize)
        self.has_limit = self._buckets is not None

    def start(self) -> None:
        """Looks after the files and addresses of keys, in threads of this process; connects to what replicas share."""
        for one in self._reloaded:
            one.start()
        if self._shared is not None:
            self._shared.start()

    def close(self) -> None:
        for one in self._reloaded:
            one.close()

    def refusal(self, scope: Scope) -> HttpError | None:
        """What a request is refused with; None where it may come in.

        Who was recognized stands in the scope afterwards, as `tabserve.who`.
        """
        path = scope["path"]
        if path in PROBES:
            return None
        refused = self._unless_allowed(scope, needed_scope(path)) if self._recognize else None
        if self._buckets is not None:
            # Whoever has found an expired key or token must not use up what its owner may ask.
            is_known = refused is None or refused.status != UNKNOWN
            wait = self._buckets.take(_counted(scope) if is_known else _address(scope))
            if wait > 0:
                return self._too_many(self._buckets.limit, wait)
        return refused

    async def refusal_by_all(self, scope: Scope) -> HttpError | None:
        """The same of the requests that all replicas have let in; asked after `refusal`, of who may come in here."""
        if self._shared is None or self._buckets is None or scope["path"] in PROBES:
            return None
        who = _counted(scope)
        wait = await self._shared.take(who)
        if wait <= 0:
            return None
        self._buckets.give_back(who)
        return self._too_many(self._buckets.limit, wait)

    def _unless_allowed(self, scope: Scope, needed: str) -> HttpError | None:
        shown = credential_of(scope["headers"])
        if shown is None:
            return self._unknown("no_key")
        for recognize in self._recognize:
            caller = recognize(shown)
            if caller is not None:
                break
        else:
            return self._unknown("unknown_key")
        scope["tabserve.who"] = caller.name
        if caller.expires is not None and caller.expires <= time.time():
            self._observer.access_refused("expired")
            return HttpError(
                UNKNOWN,
                f"The key or token has expired, on {datetime.fromtimestamp(caller.expires, UTC):%Y-%m-%d %H:%M:%S} "
                "UTC; ask for another one.",
                headers={"www-authenticate": f'{CHALLENGE}, error="invalid_token", error_description="expired"'},
            )
        if not caller.may(needed):
            self._observer.access_refused("missing_scope")
            return HttpError(
                403,
                f"The key or token lacks the scope {needed}; ask for one that has it.",
                headers={"www-authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'},
            )
        return None

    def _unknown(self, reason: Reason) -> HttpError:
        """Says the same to all of whom nothing is known: a difference would be a hint."""
        self._observer.access_refused(reason)
        return HttpError(
            UNKNOWN,
            "Expected a key or token that is known here, in X-API-Key or in Authorization: Bearer.",
            headers={"www-authenticate": CHALLENGE},
        )

    def _too_many(self, limit: RateLimit, wait: float) -> HttpError:
        self._observer.access_refused("too_many")
        headers = limit.headers(wait)
        return HttpError(429, f"Too many requests; try again in {headers['retry-after']} s.", headers=headers)


def _counted(scope: Scope) -> str:
    """What the request counts for: who was recognized, else the address that it came from."""
    who: str | None = scope.get("tabserve.who")
    return who if who is not None else _address(scope)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return counted_address(client[0]) if client else ""
