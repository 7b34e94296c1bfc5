"""Who asks, what he may ask, and what each route needs."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

PREDICT, FEEDBACK, METRICS, ADMIN = "predict", "feedback", "metrics", "admin"
SCOPES = (PREDICT, FEEDBACK, METRICS, ADMIN)

# What Kubernetes and load balancers ask, which have no key.
PROBES = frozenset({"/health", "/ready", "/livez", "/healthz", "/readyz"})

_NEEDED = {"/feedback": FEEDBACK, "/metrics": METRICS}

# Of an IPv6 address: who has one has the rest of its network too (RFC 6177), and would never come to a limit.
_NETWORK_BITS = 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was recognized: a key's name, or a token's subject."""

    name: str
    scopes: frozenset[str]
    expires: float | None = None
    """Seconds since 1970, from which on he is refused."""

    def may(self, scope: str) -> bool:
        return scope in self.scopes or ADMIN in self.scopes


def needed_scope(path: str) -> str:
    """The scope that a path needs, beside the probes: `predict` where nothing else is said, unknown paths included."""
    return _NEEDED.get(path, PREDICT)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """What a request shows: the first `X-API-Key` or `Authorization: Bearer`; None where there is neither."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()  # spaces after a value are none of it (RFC 9110, 5.5), and uvicorn leaves them
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


@lru_cache(maxsize=4096)  # parsing an address takes as long as everything else here
def counted_address(address: str) -> str:
    """What the requests of an address are counted below: itself, or its network of IPv6.

    What is no address, as a proxy may pass on, is "" whatever it says: else it could be made up for each request, or be
    the name of a key.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _NETWORK_BITS), strict=False))
