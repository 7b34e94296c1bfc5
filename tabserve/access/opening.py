"""What the settings ask for: checked in the parent, where the service starts, and opened in each worker."""

import ipaddress
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from tabserve.access.api_keys import KeyRing
from tabserve.access.callers import Caller
from tabserve.access.gate import Gate, Recognize
from tabserve.access.observer import Observer, Reason
from tabserve.access.rate_limit import RateLimit
from tabserve.access.reloaded import FileSource, Reloaded, UnusableError, UrlSource
from tabserve.access.worker_buckets import WorkerBuckets
from tabserve.settings import BadSettingError, Settings

if TYPE_CHECKING:
    from tabserve.access.bearer_tokens import BearerTokens, VerifyingKeys
    from tabserve.access.shared_rate_limit import SharedBuckets

logger = logging.getLogger(__name__)

_REDIS_SCHEMES = ("redis", "rediss", "unix")


class NobodyCounts:
    """The observer of a parent, which only looks whether there is anything to be used."""

    def access_refused(self, reason: Reason) -> None: ...

    def file_is_stale(self, source: str, *, is_stale: bool) -> None: ...

    def limited_alone(self) -> None: ...


def check_access(settings: Settings, host: str) -> None:
    """Whether the service may listen on an address, and everything that keeps strangers out can be used.

    Raises:
        BadSettingError: where not; says what to do.
    """
    has_keys = _has_keys(settings)
    if has_keys and settings.anonymous:
        raise BadSettingError(
            "TABSERVE_ANONYMOUS answers everybody, and there are keys (TABSERVE_API_KEYS_FILE or TABSERVE_JWKS): "
            "unset one of them"
        )
    if not (has_keys or settings.anonymous or _is_loopback(host)):
        raise BadSettingError(
            f"it would listen on {host} and answer everybody who reaches it: name a file of keys in "
            "TABSERVE_API_KEYS_FILE (`tabserve keys create` writes one), or set TABSERVE_ANONYMOUS=true if everybody "
            "may ask; or listen on 127.0.0.1"
        )
    open_gate(settings, NobodyCounts())


def say_who_may_ask(settings: Settings, host: str) -> None:
    """A line in the log, and a warning where nothing bounds how often."""
    if _has_keys(settings):
        logger.info("it answers who shows a key or a token, on %s", host)
    elif settings.anonymous:
        logger.info("it answers everybody who reaches %s: TABSERVE_ANONYMOUS is true", host)
    else:
        logger.info("it answers this machine alone, on %s: there are no keys", host)
    if settings.rate_limit is None and not _is_loopback(host):
        logger.warning("anybody may ask as often as he wants, on %s: TABSERVE_RATE_LIMIT is not set", host)


def open_gate(settings: Settings, observer: Observer, buckets: Path | None = None) -> Gate | None:
    """The gate, to be started in the process that serves; None where everybody may come in as often as he wants.

    Args:
        buckets: the file of all workers' buckets; where there is none each worker has its own.

    Raises:
        BadSettingError: where something cannot be used.
    """
    recognize: list[Recognize] = []
    reloaded: list[Reloaded[Any]] = []
    if settings.api_keys_file is not None:
        keys = _keys(settings.api_keys_file, observer)
        recognize.append(_by_newest(keys))
        reloaded.append(keys)
    if settings.jwks is not None:
        tokens, issuers = _tokens(settings, observer)
        recognize.append(tokens.caller)
        reloaded.append(issuers)
    shared = _shared(settings.rate_limit_url, settings.rate_limit, observer)
    limit = settings.rate_limit
    if not recognize and limit is None:
        return None
    of_workers = WorkerBuckets(buckets, limit) if limit and buckets and buckets.exists() else None
    return Gate(observer, recognize=recognize, reloaded=reloaded, limit=limit, of_workers=of_workers, shared=shared)


def believed_proxies(settings: Settings) -> str:
    """The trusted proxies as uvicorn wants to be told of them.

    Those of IPv4 twice: who listens on `::` is told ::ffff:10.0.0.1 of a proxy that has 10.0.0.1.
    """
    networks = [ipaddress.ip_network(network) for network in settings.trusted_proxies]
    mapped = [
        f"::ffff:{network.network_address}/{network.prefixlen + 96}" for network in networks if network.version == 4
    ]
    return ",".join([*settings.trusted_proxies, *mapped])


def _has_keys(settings: Settings) -> bool:
    return settings.api_keys_file is not None or settings.jwks is not None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True  # BentoML takes no names, and says so


def _keys(file: str, observer: Observer) -> Reloaded[KeyRing]:
    try:
        return Reloaded(FileSource(Path(file)), KeyRing.parse, observer, label="api_keys")
    except UnusableError as error:
        raise BadSettingError(
            f"TABSERVE_API_KEYS_FILE is {file!r}, of which no key can be taken, {error}: mend it, or let "
            "`tabserve keys create` write one"
        ) from error


def _by_newest(keys: Reloaded[KeyRing]) -> Recognize:
    def recognize(shown: bytes) -> Caller | None:
        return keys.now.caller(shown)

    return recognize


def _tokens(settings: Settings, observer: Observer) -> "tuple[BearerTokens, Reloaded[VerifyingKeys]]":
    if settings.jwks is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        raise BadSettingError(
            "TABSERVE_JWKS is set without TABSERVE_JWT_ISSUER or TABSERVE_JWT_AUDIENCE: name both, or tokens made for "
            "others would open this service"
        )
    try:
        from tabserve.access.bearer_tokens import BearerTokens, parse_jwks
    except ImportError as error:
        raise _missing("TABSERVE_JWKS", error) from error
    try:
        # An issuer that is away keeps nobody from starting: its tokens open nothing until its keys are known.
        keys: Reloaded[VerifyingKeys] = (
            Reloaded(UrlSource(_issuers_url(settings.jwks)), parse_jwks, observer, label="jwks", otherwise={})
            if "://" in settings.jwks
            else Reloaded(FileSource(Path(settings.jwks)), parse_jwks, observer, label="jwks")
        )
    except UnusableError as error:
        raise BadSettingError(f"TABSERVE_JWKS is {settings.jwks!r}, which cannot be used, {error}: mend it") from error
    return BearerTokens(keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer), keys


def _issuers_url(url: str) -> str:
    """The address, where nobody on the way can put keys of his own in."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:  # which repeats what stood there, a password perhaps
        raise BadSettingError("TABSERVE_JWKS is no address such as https://issuer.example/jwks.json") from None
    if parts.username or parts.password:
        raise BadSettingError("TABSERVE_JWKS has a user or a password in it; a JWKS is public, leave them out")
    if parts.scheme == "https" and parts.host:
        return url
    if parts.scheme == "http" and parts.host in ("127.0.0.1", "::1", "localhost"):
        return url
    raise BadSettingError(
        f"TABSERVE_JWKS is {url!r}; expected a file or an https:// address (http:// only on this machine, elsewhere "
        "somebody on the way could put keys of his own in)"
    )


def _shared(url: str | None, limit: RateLimit | None, observer: Observer) -> "SharedBuckets | None":
    if url is None:
        return None
    if limit is None:
        raise BadSettingError("TABSERVE_RATE_LIMIT_URL is set without TABSERVE_RATE_LIMIT: say how often, as 10/s:20")
    if urlsplit(url).scheme not in _REDIS_SCHEMES:  # the address itself is not shown, for its password
        raise BadSettingError(
            "TABSERVE_RATE_LIMIT_URL is no address of a Redis: expected redis://, rediss:// or unix://"
        )
    try:
        from tabserve.access.shared_rate_limit import SharedBuckets
    except ImportError as error:
        raise _missing("TABSERVE_RATE_LIMIT_URL", error) from error
    try:
        return SharedBuckets(url, limit, observer)
    except ValueError as error:
        raise BadSettingError("TABSERVE_RATE_LIMIT_URL is no address such as redis://host:6379/0") from error


def _missing(variable: str, error: ImportError) -> BadSettingError:
    return BadSettingError(
        f"{variable} needs a package that is missing ({error.name}); install it (pip install -r "
        "requirements/access.txt) or unset the variable"
    )
