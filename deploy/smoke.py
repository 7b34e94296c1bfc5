"""What must answer after a deployment: `python deploy/smoke.py https://host [--version TAG] [--commit SHA]`.

It asks for what the service says of itself (its OpenAPI page) and sends its own examples, so it fits any model. Exit
code 0 where all is as it must be, 1 where something is not, which is named; 2 for a wrong command line. It needs
nothing but Python, and is run from wherever callers are.
"""

import argparse
import http.client
import json
import math
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 5.0  # of one request; a service that has just been started may be slow once
PAUSE_SECONDS = 1.0  # between two looks whether it is ready


class UnexpectedError(Exception):
    """Something that is not as it must be; the message says what was expected and what came."""


@dataclass(frozen=True)
class Target:
    """A service, and how it is asked."""

    url: str
    key: str | None = None
    tls: ssl.SSLContext | None = None

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and decoded body of a GET, or of a POST where there is a body to send.

        Raises:
            UnexpectedError: where nothing answers, or no JSON comes.
        """
        headers = {"content-type": "application/json", **({"x-api-key": self.key} if self.key else {})}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=content, headers=headers)  # noqa: S310  # checked
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=self.tls) as answer:  # noqa: S310
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnexpectedError(f"{path}: expected an answer, got {error}") from error
        try:
            return status, json.loads(text)
        except ValueError as error:
            raise UnexpectedError(f"{path}: expected JSON, got {text[:80]!r} with status {status}") from error

    def get(self, path: str, expected: int = 200, body: Any = None) -> Any:
        """The body of an answer with the expected status.

        Raises:
            UnexpectedError: for another status, and as `ask`.
        """
        status, found = self.ask(path, body)
        if status != expected:
            raise UnexpectedError(f"{path}: expected {expected}, got {status}: {str(found)[:300]}")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    target = Target(options.url.rstrip("/"), options.key_file, options.ca_file)
    checks: list[tuple[str, Callable[[], None]]] = [
        ("ready", lambda: wait_until_ready(target, options.wait)),
        ("the version is the one that was deployed", lambda: check_version(target, options.version, options.commit)),
        ("the example rows are answered, alone and together", lambda: check_predictions(target)),
        ("what is no row is refused with 422", lambda: check_refusals(target)),
    ]
    if target.key is not None:
        checks.append(("without a key nothing is answered", lambda: check_access(target)))
    failed = 0
    for name, check in checks:
        try:
            check()
        except UnexpectedError as error:
            failed += 1
            sys.stdout.write(f"FAILED  {name}: {error}\n")
            if name == "ready":
                break  # the others would only say it again
        else:
            sys.stdout.write(f"ok      {name}\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smoke.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", type=_url, metavar="URL", help="of the service, such as https://tabserve.example.com")
    parser.add_argument("--version", metavar="TAG", help="the model version that must answer, name:version")
    parser.add_argument("--commit", metavar="SHA", help="the commit that its image must be of")
    parser.add_argument("--key-file", type=_key, metavar="FILE", help="with an API key of the scope predict")
    parser.add_argument("--ca-file", type=_trusting, metavar="FILE", help="certificate of whoever signed the service's")
    parser.add_argument("--wait", type=float, default=30.0, metavar="SECONDS", help="for it to be ready (default: 30)")
    return parser


def wait_until_ready(target: Target, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            target.get("/ready")
        except UnexpectedError:
            if time.monotonic() + PAUSE_SECONDS > deadline:
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            return


def check_version(target: Target, model: str | None, commit: str | None) -> None:
    metadata = target.get("/metadata")
    for expected, found in ((model, metadata["model_version"]), (commit, metadata["build"]["git_commit"])):
        if expected is not None and found != expected:
            raise UnexpectedError(f"expected {expected}, got {found}")


def check_predictions(target: Target) -> None:
    paths = target.get("/openapi.json")["paths"]
    instances = _example(paths["/predict/batch"], "rows")["instances"]
    together = target.get("/predict/batch", body={"instances": instances})
    if len(together["predictions"]) != len(instances):
        raise UnexpectedError(f"expected {len(instances)} predictions, got {len(together['predictions'])}")
    alone = target.get("/predict", body={"features": instances[0]})
    for answer in (alone, *together["predictions"]):
        if "value" in answer:
            if not math.isfinite(answer["value"]):
                raise UnexpectedError("expected a finite value")
        elif abs(sum(answer["probabilities"].values()) - 1) > 1e-6:  # what rounding leaves
            raise UnexpectedError("expected probabilities that sum to 1")
    says = "value" if "value" in alone else "label"
    # Between the two questions another model may have come into service; then there is nothing to compare.
    if alone["model_version"] == together["model_version"] and alone[says] != together["predictions"][0][says]:
        raise UnexpectedError("a row is answered otherwise alone than together with others")


def check_refusals(target: Target) -> None:
    found = target.get("/predict", 422, body={"features": []})
    if not found.get("error") or not found.get("detail"):
        raise UnexpectedError("expected an error with a sentence and a detail")


def check_access(target: Target) -> None:
    Target(target.url, None, target.tls).get("/metadata", 401)


def _example(path: Any, name: str) -> Any:
    return path["post"]["requestBody"]["content"]["application/json"]["examples"][name]["value"]


def _key(path: str) -> str:
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {getattr(error, 'strerror', 'no text')}") from error
    if not key or not key.isprintable():
        raise argparse.ArgumentTypeError(f"{path} has to hold one line, the key that `tabserve keys create` showed")
    return key


def _trusting(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # which an SSLError is
        raise argparse.ArgumentTypeError(f"{path} holds no certificate that can be read: {error}") from error


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected http:// or https://, got {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
