"""A release by canary: a new image gets 5, 25, 50 and 100 % of the requests, and none where it is worse.

    python -m deploy.canary nginx --file deploy/compose/canary.conf --prometheus http://127.0.0.1:9090
                                  --reload "docker compose exec -T nginx nginx -s reload"
    python -m deploy.canary httproute --namespace tabserve --prometheus http://prometheus.example.com

Both versions run already; Prometheus scrapes them as one job, with the label `track`, `stable` or `canary`. The judge
is that of the canary of a model (tabserve/lifecycle/canary_judge.py). Each look is a line of JSON. However it ends but
by getting all requests, the canary has none of them. Exit codes: 0 it has all requests, 1 it was worse, or Prometheus
does not see it; 2 bad input, 3 ended by Ctrl-C, or a share could not be set: the last line says what is left to do.
"""

import argparse
import http.client
import json
import logging
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tabserve.lifecycle.canary_judge import Limits, Seen, Verdict, judge
from tabserve.lifecycle.canary_watch import MOST_HOLDS, quantile, slower_than

logger = logging.getLogger("deploy.canary")

STABLE, CANARY = "stable", "canary"
STEPS = (5.0, 25.0, 50.0, 100.0)
GONE_BACK, STOPPED = 1, 3  # exit codes
TIMEOUT_SECONDS = 10.0  # of a question to Prometheus, of kubectl and of a reload
LOOKS = 10  # in an observation: what fails, or is gone, goes back at once and not when five minutes are over
TRIES_BACK = 5  # with a pause between them, a restart of nginx or of an API server long
PAUSE_SECONDS = 2.0
PREDICTIONS = 'route=~"/predict|/predict/batch|/bento/predict"'


class NotMovedError(Exception):
    """The share could not be set; the message says why."""


class CanaryAwayError(Exception):
    """Prometheus knows of no canary that answers."""


class Traffic(Protocol):
    """What divides requests between the two versions."""

    def send(self, percent: float) -> None:
        """Sends this share of the requests to the canary.

        Raises:
            NotMovedError: where that could not be done.
        """


@dataclass(frozen=True)
class Nginx:
    """An nginx that includes a file of ours, with `split_clients` between two upstreams.

    A reload lets the requests that are under way finish; it closes idle connections.
    """

    file: Path
    canary: str
    """Address of the canary, host:port."""
    reload: Sequence[str]

    def send(self, percent: float) -> None:
        try:
            before = self.file.read_text(encoding="utf-8") if self.file.exists() else None
            # Written in place and not renamed: the file may be mounted into a container by its inode.
            self.file.write_text(self.configuration(percent), encoding="utf-8")
        except OSError as error:
            raise NotMovedError(str(error)) from error
        try:
            _run(self.reload)
        except NotMovedError:
            if before is not None:
                self.file.write_text(before, encoding="utf-8")
            raise

    def configuration(self, percent: float) -> str:
        head = f"# Written by `python -m deploy.canary`: {percent:g} % to the canary.\n"
        if percent <= 0:
            return head + 'map "" $tabserve_upstream { default stable; }\n'
        upstream = f"upstream canary {{ server {self.canary}; keepalive 64; keepalive_timeout 1s; }}\n"
        if percent >= 100:  # split_clients takes no 100%
            return head + upstream + 'map "" $tabserve_upstream { default canary; }\n'
        share = f"{percent:.2f}%"
        return f'{head}{upstream}split_clients "$request_id" $tabserve_upstream {{ {share} canary; * stable; }}\n'


@dataclass(frozen=True)
class HttpRoute:
    """An HTTPRoute of the Gateway API with two backends in its first rule, of which the second is the canary's."""

    namespace: str
    name: str
    kubectl: Sequence[str] = ("kubectl",)

    def send(self, percent: float) -> None:
        shares = round(100 - percent), round(percent)
        patch = [
            {"op": "replace", "path": f"/spec/rules/0/backendRefs/{position}/weight", "value": share}
            for position, share in enumerate(shares)
        ]
        what = ["patch", "httproute", self.name, "--namespace", self.namespace, "--type", "json", "--patch"]
        _run([*self.kubectl, *what, json.dumps(patch)])


Look = Callable[[float], tuple[Seen, Seen]]
"""At what stable and canary did in the last so many seconds; raises CanaryAwayError where there is no canary."""

UNANSWERED = (OSError, http.client.HTTPException, ValueError, KeyError)  # what a look raises where Prometheus is away


@dataclass(frozen=True)
class Plan:
    """How the share rises: percent, rising; and how long each is observed."""

    steps: Sequence[float]
    seconds: float
    limits: Limits


def release(traffic: Traffic, look: Look, plan: Plan, is_over: threading.Event) -> int:
    """Raises the share step by step, or takes it back; returns the exit code.

    Raises:
        NotMovedError: where it could not be taken back.
    """
    why_not = _awaited(look, plan, is_over)
    if why_not:
        logger.error("not begun, the canary has no requests: %s", why_not)
        return STOPPED if is_over.is_set() else GONE_BACK
    percent = 0.0
    try:
        for percent in plan.steps:
            traffic.send(percent)
            verdict = _observed(look, percent, plan, is_over)
            if verdict is None:
                _take_back(traffic)
                logger.warning("ended at %g %%; the canary has no requests any more", percent)
                return STOPPED
            if verdict.judgement != "go":
                _take_back(traffic)
                logger.error("gone back at %g %%: %s", percent, "; ".join(verdict.reasons))
                return GONE_BACK
    except Exception as error:
        _take_back(traffic)
        if not isinstance(error, NotMovedError):
            raise
        logger.error("%g %% could not be set, the canary has no requests any more: %s", percent, error)
        return STOPPED
    logger.info("the canary has all requests")
    return 0


def _awaited(look: Look, plan: Plan, is_over: threading.Event) -> str | None:
    """Waits until Prometheus sees the canary, before it gets a request; says why not where it does not."""
    why = ""
    for _ in range(LOOKS):
        try:
            look(plan.seconds)
        except CanaryAwayError as error:
            why = str(error)
        except UNANSWERED as error:
            why = f"Prometheus does not say: {error}"
        else:
            return None
        if is_over.wait(plan.seconds / LOOKS):
            return "ended"
    return why


def _take_back(traffic: Traffic) -> None:
    for tries_left in reversed(range(TRIES_BACK)):
        try:
            return traffic.send(0)
        except NotMovedError as error:
            if not tries_left:
                raise
            logger.warning("not taken back yet: %s", error)
            time.sleep(PAUSE_SECONDS)
    return None


def _observed(look: Look, percent: float, plan: Plan, is_over: threading.Event) -> Verdict | None:
    """The last verdict on one step, after as many observations as it took to say something; None where it was ended."""
    verdict = Verdict("hold", ["nothing was seen"])
    for number in range(MOST_HOLDS):
        is_blind = True
        for part in range(1, LOOKS + 1):
            if is_over.wait(plan.seconds / LOOKS):
                return None
            try:
                stable, canary = look((number + part / LOOKS) * plan.seconds)
            except CanaryAwayError as error:
                return Verdict("back", [str(error)])
            except UNANSWERED as error:
                verdict = Verdict("hold", [f"Prometheus does not say: {error}"])
                logger.warning("%s", verdict.reasons[0])
                continue
            is_blind, is_whole = False, part == LOOKS
            verdict = _judged(stable, canary, percent, plan.limits, is_whole=is_whole)
            _say(percent, stable, canary, verdict)
            if verdict.judgement == "back" or (is_whole and verdict.judgement == "go"):
                return verdict
        if is_blind:  # nobody would notice what the canary does
            return Verdict("back", verdict.reasons)
    return verdict


def _judged(stable: Seen, canary: Seen, percent: float, limits: Limits, *, is_whole: bool) -> Verdict:
    """As the judge says; a canary that does not get its requests, because nobody reaches it, is a bad one.

    Args:
        is_whole: an observation is over. Before that only errors count: the first seconds of a share may be slow.
    """
    verdict = judge(stable, canary if is_whole else replace(canary, p99_seconds=None), limits)
    sent = (stable.n_requests + canary.n_requests) * percent / 100
    if is_whole and sent >= limits.fewest_requests and canary.n_requests < sent / 2:  # Prometheus' counts are estimates
        return Verdict("back", [f"{canary.n_requests} requests reached it, of about {sent:.0f} that were its share"])
    return verdict


def _say(percent: float, stable: Seen, canary: Seen, verdict: Verdict) -> None:
    seen = {"stable": asdict(stable), "canary": asdict(canary)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"time": now, "percent": percent, **seen, "judgement": verdict.judgement, "reasons": verdict.reasons}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Prometheus:
    """What Prometheus knows of both tracks of a job."""

    url: str
    job: str
    slow_seconds: float

    def look(self, seconds: float) -> tuple[Seen, Seen]:
        """What stable and canary did in the last so many seconds.

        Raises:
            CanaryAwayError: where no canary is up.
            OSError, HTTPException, ValueError, KeyError: where it does not answer, or not as Prometheus does.
        """
        up = self._asked("track", f'sum by (track) (up{{job="{self.job}",track="{CANARY}"}})')
        if not up.get(CANARY):
            raise CanaryAwayError(f"Prometheus sees no canary up, job {self.job}, track {CANARY}")
        return self._seen(STABLE, seconds), self._seen(CANARY, seconds)

    def _seen(self, track: str, seconds: float) -> Seen:
        of = f'{{job="{self.job}",track="{track}",{PREDICTIONS}}}[{seconds * 1000:.0f}ms]'
        by_status = self._asked("status", f"sum by (status) (increase(tabserve_requests_total{of}))")
        by_bound = self._asked("le", f"sum by (le) (increase(tabserve_request_duration_seconds_bucket{of}))")
        buckets = {float(bound): count for bound, count in by_bound.items()}
        return Seen(
            round(sum(by_status.values())),
            round(sum(count for status, count in by_status.items() if status.startswith("5"))),
            quantile(0.99, buckets),
            n_slow=slower_than(self.slow_seconds, buckets),
        )

    def _asked(self, label: str, expression: str) -> dict[str, float]:
        query = urllib.parse.urlencode({"query": expression})
        url = f"{self.url.rstrip('/')}/api/v1/query?{query}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # checked below
            found: Any = json.loads(answer.read())
        return {one["metric"][label]: float(one["value"][1]) for one in found["data"]["result"]}


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMovedError(f"{command[0]} could not be run: {error}") from error
    if done.returncode != 0:
        raise NotMovedError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    traffic: Traffic
    if options.by == "nginx":
        traffic = Nginx(options.file, options.canary, shlex.split(options.reload))
    else:
        traffic = HttpRoute(options.namespace, options.name, shlex.split(options.kubectl))
    limits = Limits(options.error_threshold, options.latency_threshold / 1000, options.fewest_requests)
    prometheus = Prometheus(options.prometheus, options.job, limits.p99_seconds)
    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.set())
    try:
        return release(traffic, prometheus.look, Plan(options.steps, options.seconds, limits), is_over)
    except NotMovedError as error:
        logger.error("THE CANARY MAY STILL HAVE REQUESTS, it could not be taken back; do it by hand: %s", error)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy.canary", description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = parser.add_subparsers(dest="by", required=True, metavar="nginx|httproute")
    nginx = kinds.add_parser("nginx", help="split_clients in a file, and a reload")
    nginx.add_argument("--file", type=Path, required=True, help="that nginx includes")
    nginx.add_argument("--canary", default="tabserve-canary:3000", metavar="HOST:PORT", help="where the canary is")
    nginx.add_argument("--reload", default="nginx -s reload", metavar="COMMAND", help="has nginx read it again")
    route = kinds.add_parser("httproute", help="weights of an HTTPRoute, by kubectl")
    route.add_argument("--namespace", default="tabserve")
    route.add_argument("--name", default="tabserve")
    route.add_argument("--kubectl", default="kubectl", metavar="COMMAND", help="with options of its own, if need be")
    for kind in (nginx, route):
        kind.add_argument("--prometheus", type=_url, required=True, metavar="URL")
        kind.add_argument("--job", default="tabserve", help="under which Prometheus scrapes both (default: tabserve)")
        kind.add_argument("--steps", type=_steps, default=STEPS, metavar="5,25,50,100", help="percent, rising")
        kind.add_argument("--seconds", type=float, default=300.0, help="each step is observed (default: 300)")
        kind.add_argument("--error-threshold", type=float, default=0.01, metavar="SHARE", help="(default: 0.01)")
        kind.add_argument(
            "--latency-threshold", type=float, default=300.0, metavar="MS", help="of the p99 (default: 300)"
        )
        kind.add_argument("--fewest-requests", type=int, default=200, help="to say that it is good (default: 200)")
    return parser


def _steps(text: str) -> list[float]:
    try:
        steps = [float(step) for step in text.split(",")]
    except ValueError:
        steps = []
    if not steps or sorted(set(steps)) != steps or not 0 < steps[0] <= steps[-1] <= 100:  # percent
        raise argparse.ArgumentTypeError(f"expected rising shares in percent such as 5,25,50,100, got {text!r}")
    return steps


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected http:// or https://, got {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
