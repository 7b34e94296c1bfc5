"""The OpenAPI description of the model in service, made from its contract, and the pages that show it.

The pages load nothing from outside: Swagger UI comes with BentoML, Redoc 2.5.4 lies in static/ (its package on npm is
`redoc`, the file bundles/redoc.standalone.js, compressed; MIT, see static/redoc.LICENSE).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tabserve.contract import MAX_ROWS, Contract, Feature
from tabserve.model_store import LoadedModel

_STATIC = Path(__file__).parent / "static"

Schema = dict[str, Any]

AN_ID = "01a1ff47-2cd4-7152-8ad0-d82ed3f88a73"  # of the examples


@dataclass(frozen=True)
class Page:
    """A fixed answer: text, or the name of a file in static/."""

    content_type: str
    text: str = ""
    file: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return _read(self.file) if self.file else self.text.encode()


@cache
def _read(file: str) -> bytes:
    return (_STATIC / file).read_bytes()


# Nothing from other places, no script in the page itself, no frame around it, and nobody told where a link was; both
# libraries write styles into the page.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}

_SWAGGER = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><title>tabserve</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="icon" href="./static_content/favicon-light-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src="./static_content/swagger-ui-standalone-preset.js"></script>
<script src="./docs/start.js"></script>
</body>
</html>
"""

_SWAGGER_START = """SwaggerUIBundle({
  dom_id: "#swagger-ui",
  urls: [{ url: "./openapi.json", name: "tabserve" }, { url: "./docs.json", name: "BentoML" }],
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "StandaloneLayout",
});
"""

_REDOC = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><title>tabserve</title>
<link rel="icon" href="./static_content/favicon-light-32x32.png">
</head>
<body>
<redoc spec-url="./openapi.json"></redoc>
<script src="./redoc/redoc.standalone.js"></script>
</body>
</html>
"""

PAGES = {
    "/docs": Page("text/html; charset=utf-8", _SWAGGER, headers=_PAGE_HEADERS),
    "/docs/start.js": Page("text/javascript; charset=utf-8", _SWAGGER_START),
    "/redoc": Page("text/html; charset=utf-8", _REDOC, headers=_PAGE_HEADERS),
    "/redoc/redoc.standalone.js": Page(
        "text/javascript; charset=utf-8", file="redoc.standalone.js.gz", headers={"content-encoding": "gzip"}
    ),
}


def openapi(model: LoadedModel) -> Schema:
    """The OpenAPI 3.1 document of our routes, with the model's own rows as working examples."""
    contract = model.contract
    instances = model.examples["instances"]
    one_as_list = {"features": instances[0]}
    one_as_object = {"features": dict(zip(contract.names, instances[0], strict=True))}
    outcome = "value" if contract.task == "regression" else "label"
    a_label = {"prediction_id": AN_ID, outcome: contract.classes[0] if contract.classes else 1.0}
    of_any_request = {
        "408": _error("The head of the request did not come in time, or its body."),
        "431": _error("The head of the request is too large."),
        "503": _error("Too many connections, or as the operation says."),
    }
    refusals = {
        **of_any_request,
        "400": _error("The body is not JSON, has a key twice in one object, or is not the gzip that it says."),
        "413": _error("The body is too large."),
        "415": _error("The body is of another media type, or encoded otherwise than by gzip."),
        "422": _error("The request breaks the contract; `detail` names row, feature and rule."),
        "500": _error("The service failed; its log says why."),
        "503": _error("No model is ready, it is overloaded, or paused; Retry-After says when to try again."),
        "504": _error("The time passed before there was an answer."),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"tabserve: {model.metadata['name']}",
            "version": model.tag.partition(":")[2],
            "description": (
                f"Predicts `{contract.target}` ({contract.task}) from {len(contract.features)} features. "
                f"Served by {model.engine.name}, trained {model.metadata['trained_at']}."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "./", "description": "this service"}],
        "tags": [{"name": "predictions"}, {"name": "labels"}, {"name": "service"}],
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "tags": ["predictions"],
                    "summary": "Answer one row",
                    "requestBody": _body(
                        {
                            "type": "object",
                            "required": ["features"],
                            "properties": {"features": _ref("Row")},
                            "additionalProperties": False,
                        },
                        {
                            "values in order": {"value": one_as_list},
                            "values by name": {"value": one_as_object},
                        },
                    ),
                    "responses": {"200": _content("The prediction.", _ref("Prediction")), **refusals},
                }
            },
            "/predict/batch": {
                "post": {
                    "operationId": "predict_batch",
                    "tags": ["predictions"],
                    "summary": f"Answer 1 to {MAX_ROWS} rows",
                    "requestBody": _body(
                        {
                            "type": "object",
                            "required": ["instances"],
                            "properties": {
                                "instances": {
                                    "type": "array",
                                    "items": _ref("Row"),
                                    "minItems": 1,
                                    "maxItems": MAX_ROWS,
                                }
                            },
                            "additionalProperties": False,
                        },
                        {"rows": {"value": {"instances": instances}}},
                    ),
                    "responses": {"200": _content("The predictions, in order.", _ref("Predictions")), **refusals},
                }
            },
            "/feedback": {
                "post": {
                    "operationId": "feedback",
                    "tags": ["labels"],
                    "summary": f"Say what came true of 1 to {MAX_ROWS} predictions; the last word on each counts",
                    "description": "An id that nobody knows is accepted: who reads the labels finds out.",
                    "requestBody": _body(
                        {
                            "oneOf": [
                                _ref("Label"),
                                {
                                    "type": "object",
                                    "required": ["labels"],
                                    "properties": {
                                        "labels": {
                                            "type": "array",
                                            "items": _ref("Label"),
                                            "minItems": 1,
                                            "maxItems": MAX_ROWS,
                                        }
                                    },
                                    "additionalProperties": False,
                                },
                            ]
                        },
                        {"one": {"value": a_label}, "several": {"value": {"labels": [a_label]}}},
                    ),
                    "responses": {
                        "200": _content("Accepted; written within half a second.", _ref("Accepted")),
                        **{status: refusal for status, refusal in refusals.items() if status not in ("503", "504")},
                        "503": _error("No model is ready, no labels are kept here, or too many wait to be written."),
                    },
                }
            },
            "/health": {
                "get": {
                    **_get("health", "Whether the process is alive", "The state."),
                    "responses": {"200": _content("The state.", {"type": "object"}), **of_any_request},
                }
            },
            "/ready": {
                "get": {
                    **_get("ready", "Whether it can answer", "A model is loaded and warmed up."),
                    "responses": {
                        "200": _content("A model is loaded and warmed up.", {"type": "object"}),
                        **of_any_request,
                        "503": _error("Not yet."),
                    },
                }
            },
            "/metadata": {
                "get": {
                    **_get("metadata", "The model in service, its metrics and its contract", ""),
                    "responses": {
                        "200": _content("The metadata.", {"type": "object"}),
                        **of_any_request,
                        "503": refusals["503"],
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "tags": ["service"],
                    "summary": "Metrics for Prometheus",
                    "responses": {
                        "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                        **of_any_request,
                    },
                }
            },
        },
        "components": {"schemas": _schemas(contract)},
    }


def _schemas(contract: Contract) -> dict[str, Schema]:
    features = {feature.name: _feature(feature) for feature in contract.features}
    required = [feature.name for feature in contract.features if not feature.may_be_missing]
    outcome: Schema
    if contract.task == "regression":
        outcome = {"value": {"type": "number", "description": f"the predicted {contract.target}"}}
    else:
        probability = {"type": "number", "minimum": 0, "maximum": 1}
        outcome = {
            "label": {"enum": list(contract.classes), "description": f"the most probable {contract.target}"},
            "probabilities": {
                "type": "object",
                "required": list(contract.probability_keys),
                "properties": dict.fromkeys(contract.probability_keys, probability),
                "additionalProperties": False,
            },
        }
    came_true = next(iter(outcome))
    label: Schema = {
        "type": "object",
        "required": ["prediction_id"],
        "anyOf": [{"required": [came_true]}, {"required": ["business_value"]}],
        "properties": {
            "prediction_id": {"type": "string", "format": "uuid"},
            came_true: {**outcome[came_true], "description": f"the {contract.target} that came true"},
            "business_value": {
                "type": "number",
                "description": "what the prediction was worth, more being better; what an A/B test may compare",
            },
        },
        "additionalProperties": False,
    }
    violation = {
        "type": "object",
        "required": ["row", "feature", "rule", "got"],
        "properties": {
            "row": {"type": ["integer", "null"], "description": "counted from 0"},
            "feature": {"type": ["string", "null"]},
            "rule": {"type": "string", "description": "the rule, and what was expected"},
            "got": {"description": "the value at fault"},
        },
    }
    of_row: Schema = {
        "prediction_id": {"type": "string", "format": "uuid"},
        **outcome,
        "warnings": {
            "type": "array",
            "items": _ref("Violation"),
            "description": "values outside of the range seen in training",
        },
    }
    of_answer: Schema = {
        "model_version": {"type": "string"},
        "n_features_in": {"type": "integer"},
        "latency_ms": {"type": "number"},
    }
    return {
        "Row": {
            "oneOf": [
                {
                    "type": "array",
                    "title": "values in order",
                    "prefixItems": list(features.values()),
                    "items": False,
                    "minItems": len(features),
                },
                {
                    "type": "object",
                    "title": "values by name",
                    "properties": features,
                    "required": required,
                    "additionalProperties": False,
                },
            ]
        },
        "Prediction": {
            "type": "object",
            "required": ["prediction_id", *outcome, *of_answer],
            "properties": {**of_row, **of_answer},
        },
        "RowPrediction": {
            "type": "object",
            "required": ["prediction_id", *outcome],
            "properties": {
                **of_row,
                "model_version": {
                    "type": "string",
                    "description": "of this row; there where a feature of it decides which model answers",
                },
            },
        },
        "Predictions": {
            "type": "object",
            "required": ["predictions", "n_instances", *of_answer],
            "properties": {
                "predictions": {"type": "array", "items": _ref("RowPrediction")},
                "n_instances": {"type": "integer"},
                **of_answer,
            },
        },
        "Label": label,
        "Accepted": {"type": "object", "required": ["accepted"], "properties": {"accepted": {"type": "integer"}}},
        "Violation": violation,
        "Error": {
            "type": "object",
            "required": ["error", "detail"],
            "properties": {
                "error": {"type": "string"},
                "detail": {"type": "array", "items": _ref("Violation")},
                "trace_id": {
                    "type": "string",
                    "pattern": "^[0-9a-f]{32}$",
                    "description": "the trace of this request; only where the service records traces and has one",
                },
            },
        },
    }


def _feature(feature: Feature) -> Schema:
    schema: Schema = {"title": feature.name}
    if feature.kind == "category":
        schema["enum"] = [*feature.categories, *([None] if feature.may_be_missing else [])]
        return schema
    schema["type"] = [feature.kind, "null"] if feature.may_be_missing else feature.kind
    if feature.kind != "boolean":
        schema["minimum"], schema["maximum"] = feature.lowest, feature.highest
    if feature.minimum is not None and feature.maximum is not None:
        schema["description"] = f"seen in training: {feature.minimum:g} to {feature.maximum:g}"
    return schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(schema: Schema, examples: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


def _content(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _error(description: str) -> Schema:
    return _content(description, _ref("Error"))


def _get(operation: str, summary: str, description: str) -> Schema:
    return {
        "operationId": operation,
        "tags": ["service"],
        "summary": summary,
        "responses": {"200": _content(description, {"type": "object"})},
    }
