"""One load test in one of Locust's processes: from the command line to the verdict, by Locust's events."""

import logging
import math
import os
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
import locust.log
import locust.stats
import msgspec
from gevent.event import Event
from locust.env import Environment
from locust.event import Events
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner

from loadtest import options, results, slo, target
from loadtest.answers import AnswerCheck, WrongAnswerError
from loadtest.bodies import Bodies
from loadtest.errors import BadInputError
from loadtest.open_loop import DRAIN_SECONDS, Arrivals, OpenLoop, Rate
from loadtest.options import Options
from loadtest.payloads import Payloads, Wanted, prepare
from loadtest.shape import MOST_SPAWNED_PER_SECOND, ProfileShape
from loadtest.timeline import Timeline
from loadtest.workers import MasterSide, WorkerSide
from tabserve.contract import Contract

logger = logging.getLogger("loadtest")

BAD_INPUT, MISSED = 2, 1  # exit codes
INTERVAL_SECONDS = 1.0  # of what is kept of a run


class Run:
    """What the users of this process ask with, and how their answers are checked."""

    options: Options
    bodies: Bodies
    check: AnswerCheck

    def __init__(self, events: Events) -> None:
        self.is_equipped = Event()
        """Set when there are bodies to send and a check of the answers; a worker gets them from its master."""
        self.open_loop: OpenLoop | None = None
        self.failures_told = 0
        """In the log, with what came."""
        self._payloads: Payloads | None = None
        self._n_users = 0
        self._workers: MasterSide | None = None
        self._master: WorkerSide | None = None
        self._started = datetime.now(UTC)
        self._timeline: Timeline | None = None
        self._verdict: list[slo.Finding] = []
        self._page: Path | None = None
        # Locust forks when it has parsed the command line (--processes), and each process finds the same fault: the one
        # that takes the byte out of this pipe says it.
        self._right_to_speak, other_end = os.pipe()
        os.set_blocking(self._right_to_speak, False)
        os.write(other_end, b"!")
        events.init_command_line_parser.add_listener(options.add_to)
        events.init.add_listener(self._on_init)
        events.test_start.add_listener(self._on_test_start)
        events.test_stopping.add_listener(self._on_test_stopping)
        events.test_stop.add_listener(self._on_test_stop)
        events.quitting.add_listener(self._on_quitting)
        events.quit.add_listener(self._on_quit)
        # Locust rounds latencies to two digits, down too, so that 504 ms would keep an objective of 500.
        locust.stats.bucket_response_time = _rounded_up  # as Locust's own documentation says

    def random_numbers(self, environment: Environment) -> random.Random:
        """Numbers of its own for each user."""
        self._n_users += 1
        return self.options.random_numbers(getattr(environment.runner, "worker_index", 0), self._n_users)

    def arrivals(self, numbers: random.Random) -> Arrivals | None:
        """The instants of a user, from now on; None in a closed loop."""
        return None if self.open_loop is None else Arrivals(self.open_loop.rate, numbers)

    # --- Locust's events, in the order in which they come

    def _on_init(self, environment: Environment, **_: Any) -> None:
        parsed, runner = _parsed(environment), environment.runner
        parsed.arrivals_per_user = parsed.in_flight_per_user = None  # Locust's workers get them from its master
        if isinstance(runner, MasterRunner):
            self._workers = MasterSide(runner)
        try:
            self.options = Options.read(parsed)
            if environment.host or (parsed.headless and not isinstance(runner, WorkerRunner)):
                self._look_at(environment)
        except BadInputError as error:
            self._leave(error)
        self.options.set_users(parsed)
        if isinstance(runner, WorkerRunner):
            self._master = WorkerSide(runner, self._on_payloads, self._drain)
        elif self.options.stages:
            environment.shape_class = ProfileShape(
                self.options.stages, users=parsed.num_users, spawn_rate=min(parsed.spawn_rate, MOST_SPAWNED_PER_SECOND)
            )
            environment.shape_class.runner = runner

    def _on_test_start(self, environment: Environment, **_: Any) -> None:
        """Looks again: the web page may have changed the options, and another model may be served by now."""
        parsed, runner = _parsed(environment), environment.runner
        try:
            self.options = Options.read(parsed)
            if not isinstance(runner, WorkerRunner):
                self._look_at(environment)
                self._share_out(environment)
        except BadInputError as error:
            logger.error("%s", error)
            environment.process_exit_code = BAD_INPUT
            gevent.spawn(_quit_or_stop, environment)
            return
        environment.process_exit_code = None
        self._equip()
        self.open_loop = None
        if parsed.arrivals_per_user is not None:
            rate = Rate(parsed.arrivals_per_user, parsed.in_flight_per_user, self.options.is_poisson)
            self.open_loop = OpenLoop(environment, rate)
        if not isinstance(runner, WorkerRunner):
            # Locust's workers report that often; in between there is nothing new.
            interval = WORKER_REPORT_INTERVAL if self._workers is not None else INTERVAL_SECONDS
            self._started = datetime.now(UTC)
            self._timeline = Timeline(environment, str(environment.host), interval, self.options.key_header)

    def _on_test_stopping(self, environment: Environment, **_: Any) -> None:
        """Waits for the answers that are under way, before Locust ends the users that wait for them."""
        if self._workers is not None and self.open_loop is not None:
            self._workers.drain((environment.stop_timeout or DRAIN_SECONDS) + 5)
        else:
            self._drain()

    def _on_test_stop(self, environment: Environment, **_: Any) -> None:
        """Where the web page started the run; else the last numbers of Locust's workers come only now."""
        if not _is_headless(environment):
            self._finish(environment)

    def _on_quitting(self, environment: Environment, **_: Any) -> None:
        runner = environment.runner
        if runner is None or isinstance(runner, WorkerRunner) or not _is_headless(environment):
            return
        if self._workers is None:  # a master has stopped by now
            runner.stop()
        if environment.process_exit_code is not None:
            return
        self._finish(environment)
        if any(not finding.is_met for finding in self._verdict):
            environment.process_exit_code = MISSED
        elif not locust.log.unhandled_greenlet_exception:
            environment.process_exit_code = 0  # Locust would say 1 for a single failure

    def _on_quit(self, **_: Any) -> None:
        """Last of all, below Locust's own tables."""
        if self._page is not None:
            sys.stderr.write(f"report: {self._page}\n")
        for finding in self._verdict:
            sys.stderr.write(f"{finding}\n")

    # --- parts of them

    def _finish(self, environment: Environment) -> None:
        """Judges a run that has ended, and keeps what is to be kept of it."""
        timeline, self._timeline = self._timeline, None
        if timeline is not None:
            timeline.end()
        self._verdict = slo.verdict(self.options.objectives, measured(environment))
        if environment.runner is not None and environment.runner.exceptions:
            sentence = "the load generator itself failed; its log says how"
            self._verdict.append(slo.Finding(is_met=False, sentence=sentence))
        if timeline is None or self.options.results is None or self._payloads is None:
            return
        ended = results.Ended(
            environment,
            self._started,
            timeline.intervals,
            self._verdict,
            self.options.objectives,
            model=self._payloads.wanted.tag,
            load=self._load(environment),
        )
        try:
            self._page = results.keep(ended, self.options.results, self.options.runs_page)
        except OSError as error:
            logger.error("the results of this run cannot be kept: %s", error)

    def _load(self, environment: Environment) -> str:
        """What was asked, in a few words."""
        parsed = _parsed(environment)
        users = " ".join(user.__name__ for user in environment.user_classes)
        if self.options.arrival_rate is None:
            how = f"closed loop, {parsed.num_users or 1} users"
        else:
            how = f"open loop, {self.options.arrival_rate:g} a second"
        profile = f"{parsed.profile}, " if parsed.profile else ""
        n_processes = len(self._workers.seen) if self._workers is not None else 1
        processes = f", {n_processes} processes" if n_processes > 1 else ""
        seconds = round((datetime.now(UTC) - self._started).total_seconds())
        return f"{users}: {profile}{how}, {seconds} s{processes}"

    def _look_at(self, environment: Environment) -> None:
        """Finds the service, and has payloads made where another model is served than they were made for."""
        found = target.find(environment.host, self.options.expected_model, self.options.key_header)
        environment.host = found.url
        wanted = Wanted(contract=found.contract.model_dump(mode="json"), tag=found.tag, seed=self.options.seed)
        if isinstance(environment.runner, WorkerRunner) or (self._payloads and self._payloads.wanted == wanted):
            return
        self._payloads = prepare(wanted)
        logger.info("%s serves %s: %s", found.url, found.tag, self._payloads.origin)
        if self._workers is not None:
            self._workers.hand_out(msgspec.json.encode(self._payloads))

    def _on_payloads(self, encoded: bytes) -> None:
        self._payloads = msgspec.json.decode(encoded, type=Payloads)
        self._equip()

    def _equip(self) -> None:
        if self._payloads is None:
            return
        self.bodies = Bodies(self._payloads, self.options.max_body_bytes)
        wanted = self._payloads.wanted
        self.check = AnswerCheck(
            Contract.model_validate(wanted.contract),
            wanted.tag,
            self._payloads.scores,
            model_may_change=self.options.model_may_change,
        )
        self.is_equipped.set()

    def _share_out(self, environment: Environment) -> None:
        """Says what each user brings. Locust sends options on to its workers, so each of them does its share."""
        parsed, runner = _parsed(environment), environment.runner
        parsed.arrivals_per_user = parsed.in_flight_per_user = None
        if self.options.arrival_rate is not None and runner is not None:
            users = parsed.num_users if environment.shape_class else runner.target_user_count
            parsed.arrivals_per_user = self.options.arrival_rate / users
            parsed.in_flight_per_user = math.ceil(self.options.max_in_flight / users)

    def _drain(self) -> None:
        if self.open_loop is not None:
            self.open_loop.drain()

    def _leave(self, error: BadInputError) -> None:
        try:
            is_first = bool(os.read(self._right_to_speak, 1))
        except BlockingIOError:
            is_first = False
        if is_first:
            sys.stderr.write(f"loadtest: {error}\n")
        if self._workers is not None:
            self._workers.dismiss()
        sys.exit(BAD_INPUT)


def measured(environment: Environment) -> slo.Measured:
    """What Locust's statistics hold, of all requests."""
    stats = environment.stats
    # Errors come from workers as text, and are objects in a process of its own.
    wrong = sum(error.occurrences for error in stats.errors.values() if WrongAnswerError.PREFIX in str(error.error))
    return slo.Measured(
        requests=stats.num_requests,
        failures=stats.num_failures,
        wrong=wrong,
        timed=stats.num_requests - stats.num_none_requests,
        percentile_ms=stats.total.get_response_time_percentile,
    )


def _parsed(environment: Environment) -> Any:
    return environment.parsed_options


def _is_headless(environment: Environment) -> bool:
    parsed = _parsed(environment)
    return bool(parsed.headless or parsed.autostart)


def _quit_or_stop(environment: Environment) -> None:
    runner: Any = environment.runner
    (runner.quit if _parsed(environment).headless else runner.stop)()


def _rounded_up(response_time: float) -> int:
    """Up, to three digits: few enough to send between processes, and never better than it was."""
    step: int = 10 ** max(0, len(str(int(response_time))) - 3)
    return math.ceil(response_time / step) * step
