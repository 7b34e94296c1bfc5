"""What answers at `--host`: whether it is this service, and which model it serves."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from loadtest.errors import BadInputError
from tabserve.contract import Contract

LIMIT_SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """A running service, with the model that it serves and that model's contract as it shows it."""

    url: str
    tag: str
    contract: Contract


def find(host: str | None, expected_model: str | None, headers: Mapping[str, str]) -> Target:
    """The service at an address such as http://127.0.0.1:3000.

    Args:
        expected_model: what it must serve, `name:version`, or `name` for any version of it.
        headers: what it is asked with; a key, where it wants one.

    Raises:
        BadInputError: where there is no such service.
    """
    url = _checked(host)
    metadata = _metadata(url, headers)
    tag, shown = metadata.get("model_version"), metadata.get("contract")
    if not isinstance(tag, str) or not isinstance(shown, dict):
        raise BadInputError(f"what answers at {url} is not tabserve: GET /metadata shows no model with a contract")
    try:
        contract = Contract.model_validate(shown)
    except ValidationError as error:
        raise BadInputError(f"the contract that {url} shows is not as this version of tabserve reads it") from error
    if expected_model is not None and expected_model not in (tag, tag.partition(":")[0]):
        raise BadInputError(f"the service at {url} serves {tag}, not {expected_model} as --expect-model says")
    return Target(url, tag, contract)


def _checked(host: str | None) -> str:
    expected = "expected the address of a service, such as http://127.0.0.1:3000"
    if not host:
        raise BadInputError(f"--host is missing: {expected}")
    try:
        parts = urlsplit(host)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        is_usable = False
    if not is_usable:
        raise BadInputError(f"--host is {host!r}: {expected}")
    return host.rstrip("/")


def _metadata(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    asked = urllib.request.Request(f"{url}/metadata", headers=dict(headers))  # noqa: S310  # checked: http or https
    try:
        with urllib.request.urlopen(asked, timeout=LIMIT_SECONDS) as response:  # noqa: S310  # as above
            parsed = json.loads(response.read())
    except urllib.error.HTTPError as error:
        if error.code == http.client.SERVICE_UNAVAILABLE:
            raise BadInputError(
                f"the service at {url} is not ready: GET /metadata gave 503; wait for /ready"
            ) from error
        if error.code in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            raise BadInputError(
                f"the service at {url} refuses us: GET /metadata gave {error.code}; it wants --api-key-file, "
                "with a key of the scope predict"
            ) from error
        raise BadInputError(f"what answers at {url} is not tabserve: GET /metadata gave {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise BadInputError(f"no service answers at {url} ({reason}): start one first, `make serve`") from error
    except ValueError as error:
        raise BadInputError(f"what answers at {url} is not tabserve: GET /metadata gave no JSON") from error
    return parsed if isinstance(parsed, dict) else {}
