"""Load on a running service, by Locust: `locust -f loadtest/locustfile.py --host http://127.0.0.1:3000`.

With its web page or `--headless`, alone or with `--processes`, `--master` and `--worker`, as Locust's users know it.
The users fit any model: what they ask with is made from the contract that the service shows. Every answer is checked,
and a wrong one is a failure in Locust's statistics. Exit codes of a headless run: 0 where it kept its objectives, 1
where it missed one, 2 where it could not begin.
"""

import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from locust import FastHttpUser, events, task
from locust.env import Environment

from loadtest import hostile
from loadtest.answers import FailedAnswerError, check_refusal
from loadtest.open_loop import Arrivals, report
from loadtest.run import Run

JSON = {"Content-Type": "application/json"}
DETAILS = 5  # failures of a process that get a line in the log with what came; thousands would say the same

logger = logging.getLogger("loadtest")
run = Run(events)


class Caller(FastHttpUser):
    """Asks again when it has its answer, or is a source of arrivals in an open loop."""

    abstract = True
    network_timeout = 30.0
    connection_timeout = 10.0
    label = ""
    """What its requests are called in Locust's statistics."""

    def __init__(self, environment: Environment) -> None:
        if run.open_loop is not None:
            self.concurrency = run.open_loop.rate.most_under_way  # of its connections
        super().__init__(environment)
        self.random = run.random_numbers(environment)
        self.arrivals: Arrivals | None = None
        self.under_way = 0
        """Requests of an open loop that have no answer yet."""

    def on_start(self) -> None:
        run.is_equipped.wait()
        self.arrivals = run.arrivals(self.random)
        if self.arrivals is not None:
            gevent.sleep(self.arrivals.seconds_left())

    def wait_time(self) -> float:
        if self.arrivals is None:
            return 0.0
        self.arrivals.advance()
        return self.arrivals.seconds_left()

    @task
    def ask(self) -> None:
        if self.arrivals is None or run.open_loop is None:
            self.ask_once(None)
        else:
            run.open_loop.arrive(self, self.arrivals.due)

    def ask_once(self, due: float | None) -> None:
        """Makes one request; its latency counts from `due`, by time.perf_counter(), or from when it is sent."""
        raise NotImplementedError

    def post(
        self,
        path: str,
        body: bytes,
        check: Callable[[int, bytes], None],
        due: float | None,
        *,
        name: str | None = None,
        headers: dict[str, str] = JSON,
    ) -> None:
        """Sends a body, and has Locust count the answer as its check says.

        Args:
            check: given status and body of the answer, raises FailedAnswerError.
        """
        waited_ms = 0.0 if due is None else max(0.0, time.perf_counter() - due) * 1000
        sent: Any = body  # its type says text, and its own documentation text or bytes
        with self.client.post(
            path, data=sent, headers={**headers, **run.options.key_header}, catch_response=True, name=name
        ) as response:
            response.request_meta["response_time"] += waited_ms
            if not response.status_code:
                response.failure(unanswered(response.error))
                return
            try:
                check(response.status_code, response.content or b"")
            except FailedAnswerError as error:
                response.failure(str(error))
                say_more(name or path, error)
            else:
                response.success()


class OneRow(Caller):
    """Asks about one row."""

    weight = 10
    label = "/predict"

    def ask_once(self, due: float | None) -> None:
        number = self.random.randrange(len(run.bodies))
        self.post("/predict", run.bodies.one(number), partial(run.check.one, number=number), due)


class ManyRows(Caller):
    """Asks about 2 to 64 rows at once."""

    weight = 2
    label = "/predict/batch"

    def ask_once(self, due: float | None) -> None:
        start, n_rows = some_rows(self.random, 2, 64)
        check = partial(run.check.many, start=start, n_rows=n_rows)
        self.post("/predict/batch", run.bodies.many(start, n_rows), check, due)


class BentoApi(Caller):
    """Asks BentoML's own API about 1 to 8 rows."""

    weight = 1
    label = "/bento/predict"

    def ask_once(self, due: float | None) -> None:
        start, n_rows = some_rows(self.random, 1, 8)
        check = partial(run.check.bento, start=start, n_rows=n_rows)
        self.post("/bento/predict", run.bodies.bento(start, n_rows), check, due)


class Hostile(Caller):
    """Sends what must be refused; the refusal that it expects is a success, anything else a failure."""

    weight = 1
    label = "hostile"
    n_asked = 0
    """By all users of this process."""

    def ask_once(self, due: float | None) -> None:
        # A slow sender keeps its user busy for as long as the service lets it, and a huge body is a megabyte.
        weights = {
            self.bad_row: 10,
            self.broken_json: 5,
            self.wrong_type: 5,
            self.hang_up: 3,
            self.huge_body: 1,
            self.slow_sender: 1,
        }
        acts = list(weights)
        if Hostile.n_asked < len(acts):  # each of them once, then by chance: a run of seconds has them all
            act = acts[Hostile.n_asked]
        else:
            (act,) = self.random.choices(acts, list(weights.values()))
        Hostile.n_asked += 1
        act(due)

    def bad_row(self, due: float | None) -> None:
        self.refused(422, self.random.choice(run.bodies.bad), due, "hostile: bad row")

    def broken_json(self, due: float | None) -> None:
        self.refused(400, self.random.choice(hostile.BROKEN_JSON), due, "hostile: broken JSON")

    def wrong_type(self, due: float | None) -> None:
        headers = self.random.choice(hostile.WRONG_TYPES)
        self.refused(415, run.bodies.one(0), due, "hostile: wrong media type", headers)

    def huge_body(self, due: float | None) -> None:
        self.refused(413, run.bodies.too_large, due, "hostile: huge body")

    def hang_up(self, _due: float | None) -> None:
        self.misbehave(
            "hostile: hang-up", lambda url: hostile.hang_up(url, "/predict", run.bodies.one(0), run.options.key_header)
        )

    def slow_sender(self, _due: float | None) -> None:
        self.misbehave("hostile: slow sender", lambda url: hostile.send_slowly(url, "/predict", run.options.key_header))

    def refused(self, status: int, body: bytes, due: float | None, name: str, headers: dict[str, str] = JSON) -> None:
        self.post("/predict", body, partial(check_refusal, expected=status), due, name=name, headers=headers)

    def misbehave(self, name: str, act: Callable[[str], None]) -> None:
        """Reports without a latency: how long it takes is the caller's doing."""
        failure = None
        try:
            act(str(self.host))
        except FailedAnswerError as error:
            failure = str(error)
        except OSError as error:
            failure = unanswered(error)
        report(self.environment, name, None, failure)


def unanswered(error: Exception) -> str:
    return f"no answer: {type(error).__name__}: {error}"


def some_rows(numbers: random.Random, fewest: int, most: int) -> tuple[int, int]:
    """Where in the payloads some rows begin, and how many they are."""
    n_rows = numbers.randint(fewest, most)
    return numbers.randrange(len(run.bodies) - n_rows + 1), n_rows


def say_more(name: str, error: FailedAnswerError) -> None:
    run.failures_told += 1
    if run.failures_told <= DETAILS:
        logger.warning("%s: %s; %s", name, error, error.detail)
