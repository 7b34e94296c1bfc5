"""Everything that the environment may set, read when the service starts. README.md has the same table."""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from tabserve.access.rate_limit import RateLimit


@dataclass(frozen=True)
class Setting:
    """One knob: its variable in the environment, its default, and what it does."""

    variable: str
    default: str
    help: str


SETTINGS = {
    "model": Setting(
        "TABSERVE_MODEL",
        "",
        "The model that is served, `name` (its newest version) or `name:version`; "
        "empty for the champion of the rollout, else the model trained last.",
    ),
    "strict_ranges": Setting(
        "TABSERVE_STRICT_RANGES",
        "false",
        "Whether a value outside of the range seen in training is refused (422) instead of answered with a warning.",
    ),
    "max_body_bytes": Setting(
        "TABSERVE_MAX_BODY_BYTES", "1048576", "The largest request body in bytes; a larger one is refused (413)."
    ),
    "request_timeout_ms": Setting(
        "TABSERVE_REQUEST_TIMEOUT_MS",
        "5000",
        "How long a prediction may take, in milliseconds; one that would be too late is refused at once (503).",
    ),
    "max_queued_rows": Setting(
        "TABSERVE_MAX_QUEUED_ROWS", "65536", "How many rows may wait for the model; more are refused at once (503)."
    ),
    "max_connections": Setting(
        "TABSERVE_MAX_CONNECTIONS",
        "4096",
        "How many connections a worker serves at once, each with one request; requests on others are refused (503).",
    ),
    "batching": Setting(
        "TABSERVE_BATCHING",
        "true",
        "Whether the rows of concurrent requests go to the model together; where not, each request goes alone.",
    ),
    "batch_budget_ms": Setting(
        "TABSERVE_BATCH_BUDGET_MS",
        "50",
        "How long a batch may take, in milliseconds: what bounds its rows, beside their number (512).",
    ),
    "log_success_share": Setting(
        "TABSERVE_LOG_SUCCESS_SHARE",
        "0.01",
        "The share, 0 to 1, of the successful requests that get a log line; each failed one gets one, "
        "those refused with 401, 403, 429 or 503 one a second.",
    ),
    "log_level": Setting("TABSERVE_LOG_LEVEL", "INFO", "The least severe log lines: DEBUG, INFO, WARNING or ERROR."),
    "log_url": Setting(
        "TABSERVE_LOG_URL",
        "",
        "Where each prediction is kept: `file:///a/folder`, `s3://bucket/prefix`, `postgresql://user@host/database`, "
        "or `null:` for nowhere; empty for the folder `prediction_log` in BentoML's home.",
    ),
    "log_sample": Setting(
        "TABSERVE_LOG_SAMPLE", "1", "The share, above 0 to 1, of the requests whose predictions are kept."
    ),
    "log_key_file": Setting(
        "TABSERVE_LOG_KEY_FILE",
        "",
        "A file with the key by which personal features are hashed before they are kept; empty to leave them out.",
    ),
    "log_retention_days": Setting(
        "TABSERVE_LOG_RETENTION_DAYS", "30", "How many days predictions are kept; what is older is deleted."
    ),
    "log_spool_bytes": Setting(
        "TABSERVE_LOG_SPOOL_BYTES",
        "1073741824",
        "How many bytes of predictions may wait on the local disk for a bucket or a database that is away; "
        "more are dropped, and counted.",
    ),
    "log_max_queued_rows": Setting(
        "TABSERVE_LOG_MAX_QUEUED_ROWS",
        "100000",
        "How many predictions of a worker may wait to be written; more are dropped, and counted.",
    ),
    "cors_origins": Setting(
        "TABSERVE_CORS_ORIGINS",
        "",
        "The web pages whose scripts may ask, as origins with commas between them: "
        "`https://a.example,https://b.example`; empty for none.",
    ),
    "api_keys_file": Setting(
        "TABSERVE_API_KEYS_FILE",
        "",
        "The file of API keys, which `tabserve keys` writes; with it every request but the probes' needs one.",
    ),
    "jwks": Setting(
        "TABSERVE_JWKS",
        "",
        "The public keys by which bearer tokens are checked: a JWKS file, or its https:// address; needs the next two.",
    ),
    "jwt_issuer": Setting("TABSERVE_JWT_ISSUER", "", "The issuer (`iss`) whose bearer tokens are taken."),
    "jwt_audience": Setting("TABSERVE_JWT_AUDIENCE", "", "What a bearer token has to be made for (`aud`)."),
    "anonymous": Setting(
        "TABSERVE_ANONYMOUS",
        "false",
        "Whether everybody who reaches the service is answered; without keys, tokens or this it only listens on a "
        "loopback address.",
    ),
    "rate_limit": Setting(
        "TABSERVE_RATE_LIMIT",
        "",
        "How often each key, token or address may ask, and how often at once, such as `10/s:20`; more is refused "
        "(429); empty for no limit.",
    ),
    "rate_limit_url": Setting(
        "TABSERVE_RATE_LIMIT_URL",
        "",
        "The Redis, redis://, rediss:// or unix://, by which all replicas count together; "
        "empty for each replica alone.",
    ),
    "trusted_proxies": Setting(
        "TABSERVE_TRUSTED_PROXIES",
        "",
        "The proxies whose X-Forwarded-For is believed, as addresses and networks with commas between them: "
        "`10.0.0.0/8,::1`; empty for none.",
    ),
    "audit_log": Setting(
        "TABSERVE_AUDIT_LOG",
        "",
        "The file of the audit log, who did what and who was refused; empty for `audit.jsonl` in BentoML's home.",
    ),
}


def wants_tracing(environment: Mapping[str, str] | None = None) -> bool:
    """Whether spans go to a receiver, by OpenTelemetry's own variables; tabserve.tracing reads the rest of them."""
    environment = os.environ if environment is None else environment
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    receivers = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environment.get(variable, "").strip() for variable in receivers)


class BadSettingError(ValueError):
    """A variable whose value cannot be used; the message names variable, value and what was expected."""


@dataclass(frozen=True)
class Settings:
    """The settings of one run of the service; SETTINGS says what each means."""

    model: str | None = None
    strict_ranges: bool = False
    max_body_bytes: int = 1048576
    request_timeout_ms: int = 5000
    max_queued_rows: int = 65536
    max_connections: int = 4096
    batching: bool = True
    batch_budget_ms: int = 50
    log_success_share: float = 0.01
    log_level: str = "INFO"
    log_url: str | None = field(default=None, repr=False)  # there may be a password in it
    log_sample: float = 1.0
    log_key_file: str | None = None
    log_retention_days: int = 30
    log_spool_bytes: int = 1073741824
    log_max_queued_rows: int = 100_000
    cors_origins: tuple[str, ...] = ()
    api_keys_file: str | None = None
    jwks: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    anonymous: bool = False
    rate_limit: RateLimit | None = None
    rate_limit_url: str | None = field(default=None, repr=False)  # as above
    trusted_proxies: tuple[str, ...] = ()
    audit_log: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Reads and checks every setting.

        Raises:
            BadSettingError: for the first value that cannot be used.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for one in fields(cls):
            setting = SETTINGS[one.name]
            text = environment.get(setting.variable, setting.default).strip()
            try:
                values[one.name] = _PARSERS[one.name](text)
            except ValueError as error:
                raise BadSettingError(f"{setting.variable} is {text!r}, expected {error}: {setting.help}") from None
        return cls(**values)


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False, "": False}
    if text.lower() not in known:
        raise ValueError("true or false")
    return known[text.lower()]


def _positive_whole_number(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise ValueError("a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("a number from 0 to 1")
    return share


def _share_above_0(text: str) -> float:
    share = _share(text)
    if share == 0:
        raise ValueError("a number above 0, at most 1")
    return share


def _level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("DEBUG, INFO, WARNING or ERROR")
    return text.upper()


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    # Not "*": whoever reads a page anywhere could ask then, with what the network around him allows.
    if not all(re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", origin) for origin in origins):
        raise ValueError("origins such as https://a.example or http://localhost:8080, with commas between them")
    return origins


def _networks(text: str) -> tuple[str, ...]:
    networks = [network.strip() for network in text.split(",") if network.strip()]
    try:
        return tuple(str(ipaddress.ip_network(network)) for network in networks)
    except ValueError:
        raise ValueError("addresses and networks such as 10.0.0.0/8 or ::1, with commas between them") from None


_PARSERS: dict[str, Callable[[str], Any]] = {
    "model": lambda text: text or None,
    "strict_ranges": _boolean,
    "max_body_bytes": _positive_whole_number,
    "request_timeout_ms": _positive_whole_number,
    "max_queued_rows": _positive_whole_number,
    "max_connections": _positive_whole_number,
    "batching": _boolean,
    "batch_budget_ms": _positive_whole_number,
    "log_success_share": _share,
    "log_level": _level,
    "log_url": lambda text: text or None,
    "log_sample": _share_above_0,
    "log_key_file": lambda text: text or None,
    "log_retention_days": _positive_whole_number,
    "log_spool_bytes": _positive_whole_number,
    "log_max_queued_rows": _positive_whole_number,
    "cors_origins": _origins,
    "api_keys_file": lambda text: text or None,
    "jwks": lambda text: text or None,
    "jwt_issuer": lambda text: text or None,
    "jwt_audience": lambda text: text or None,
    "anonymous": _boolean,
    "rate_limit": lambda text: RateLimit.parse(text) if text else None,
    "rate_limit_url": lambda text: text or None,
    "trusted_proxies": _networks,
    "audit_log": lambda text: text or None,
}
