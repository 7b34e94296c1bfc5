"""What the OpenAPI page says of keys and limits, where there are any."""

from typing import Any

from tabserve.access.callers import ADMIN, PROBES, needed_scope
from tabserve.access.gate import Gate

Schema = dict[str, Any]

_SCHEMES: Schema = {
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a token of the issuer"},
}


def with_access(page: Schema, gate: Gate) -> Schema:
    """An OpenAPI document with what each route needs, and how it refuses."""
    paths = {path: _with_refusals(path, methods, gate) for path, methods in page["paths"].items()}
    components = {**page["components"], **({"securitySchemes": _SCHEMES} if gate.needs_keys else {})}
    return {**page, "paths": paths, "components": components}


def _with_refusals(path: str, methods: Schema, gate: Gate) -> Schema:
    if path in PROBES:
        return {method: {**operation, "security": []} for method, operation in methods.items()}
    more: Schema = {}
    refusals: Schema = {}
    if gate.needs_keys:
        needed = needed_scope(path)
        more["security"] = [{"apiKey": [needed]}, {"bearer": [needed]}]  # 3.1 lets any scheme name roles
        refusals["401"] = _refusal("No key or token that is known, or one that has expired.", "WWW-Authenticate")
        refusals["403"] = _refusal(f"It has neither the scope {needed} nor {ADMIN}.", "WWW-Authenticate")
    if gate.has_limit:
        refusals["429"] = _refusal("Too many requests.", "Retry-After", "RateLimit", "RateLimit-Policy")
    return {
        method: {**operation, **more, "responses": {**operation["responses"], **refusals}}
        for method, operation in methods.items()
    }


def _refusal(description: str, *headers: str) -> Schema:
    return {
        "description": description,
        "headers": {header: {"schema": {"type": "string"}} for header in headers},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
