"""What is called when a model should be trained again, and DIR/<model>/retraining.json, which remembers that it was.

A trigger is written down before anything is called, so that no restart calls again. Calls wait for each other in a
thread of their own: one at a time, and the schedule waits for none.
"""

import logging
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from pydantic import TypeAdapter, ValidationError

from monitoring.reports.files import write_whole
from monitoring.watching.trigger import Call, Trigger
from monitoring.watching.webhook import Webhook, WebhookFailedError

logger = logging.getLogger("monitoring.watch")

STATE_FILE = "retraining.json"
LIMIT_SECONDS = 4 * 3600.0
LAST_WORDS_SECONDS = 2.0  # for a command that is ended, to end itself

_TRIGGERS = TypeAdapter(tuple[Trigger, ...])


class BadStateError(OSError):
    """The triggers that are kept cannot be read; the message says what to do."""


def read_triggers(directory: Path, model: str) -> tuple[Trigger, ...]:
    """Of one model, the oldest first.

    Raises:
        BadStateError: where they cannot be read: then nobody knows what was called, and nothing may be.
    """
    path = directory / model / STATE_FILE
    try:
        return _TRIGGERS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        why = error.errors(include_input=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise BadStateError(
            f"{path} cannot be read ({why}), so nothing is called: restore it, or delete it to begin anew"
        ) from error


@dataclass(frozen=True)
class Command:
    """A program and its arguments, started without a shell."""

    arguments: Sequence[str]
    limit_seconds: float = LIMIT_SECONDS


class Retrainer:
    """Takes triggers; with neither command nor webhook it only writes them down."""

    def __init__(
        self,
        directory: Path,
        command: Command | None,
        webhook: Webhook | None,
        when_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._directory = directory
        self._command = command
        self._webhook = webhook
        self._when_failed = when_failed
        self._waiting: queue.SimpleQueue[Trigger | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._is_stopped = threading.Event()
        self._has_ended = threading.Event()
        threading.Thread(target=self._work, name="retraining", daemon=True).start()

    def take(self, trigger: Trigger) -> None:
        """Writes a trigger down, then has it called.

        Raises:
            OSError: where it cannot be written: then nothing is called, for nobody would know that it was.
        """
        calls = [Call(what="webhook")] if self._webhook else []
        calls += [Call(what="command")] if self._command else []
        kept = trigger.model_copy(update={"calls": tuple(calls)})
        with self._lock:
            self._write([*read_triggers(self._directory, trigger.model), kept], trigger.model)
        if calls:
            self._waiting.put(kept)

    def stop(self) -> None:
        """Ends a command that runs, and writes down of it, and of what still waits, that it failed."""
        self._is_stopped.set()
        self._waiting.put(None)
        self._end(SIGTERM)
        if not self._has_ended.wait(LAST_WORDS_SECONDS):
            self._end(SIGKILL)
            self._has_ended.wait(LAST_WORDS_SECONDS)

    def _work(self) -> None:
        while (trigger := self._waiting.get()) is not None:
            try:
                self._call(trigger)
            except Exception as error:  # noqa: BLE001  # the next trigger is called all the same
                self._when_failed()
                logger.error("retraining %s: %s", trigger.model, error)
        self._has_ended.set()

    def _call(self, trigger: Trigger) -> None:
        calls = list(trigger.calls)
        for place, call in enumerate(calls):
            try:
                said = self._post(trigger) if call.what == "webhook" else self._run(trigger)
            except (OSError, subprocess.SubprocessError) as error:
                calls[place] = Call(what=call.what, outcome="failed", said=str(error))
                self._when_failed()
                logger.error("retraining %s: the %s failed: %s", trigger.model, call.what, error)
            else:
                calls[place] = Call(what=call.what, outcome="succeeded", said=said)
                logger.info("retraining %s: the %s succeeded: %s", trigger.model, call.what, said)
            self._remember(trigger, calls)

    def _post(self, trigger: Trigger) -> str:
        if self._webhook is None:
            raise WebhookFailedError("there is none")
        told = trigger.model_dump(mode="json", include={"at", "model", "version", "causes", "reasons"})
        return self._webhook.post({**told, "idempotency_key": trigger.key}, trigger.key, self._is_stopped)

    def _run(self, trigger: Trigger) -> str:
        """Runs the command to its end; what it prints goes where our own log goes."""
        if self._command is None:
            raise FileNotFoundError("there is none")
        environment = {
            **os.environ,
            "TABSERVE_RETRAIN_MODEL": trigger.model,
            "TABSERVE_RETRAIN_VERSION": trigger.version,
            "TABSERVE_RETRAIN_REASONS": "; ".join(trigger.reasons),
            "TABSERVE_RETRAIN_KEY": trigger.key,
        }
        logger.info("retraining %s: %s is started", trigger.model, self._command.arguments[0])
        with self._lock:
            if self._is_stopped.is_set():
                raise InterruptedError("the monitor was stopped before it was started")
            # Its own process group, so that what it starts ends with it.
            running = subprocess.Popen(  # noqa: S603  # the command that the operator gave, without a shell
                self._command.arguments,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,
                stderr=2,
                start_new_session=True,
            )
            self._running = running
        try:
            code = running.wait(self._command.limit_seconds)
        except subprocess.TimeoutExpired:
            self._end(SIGKILL)
            running.wait()
            raise TimeoutError(f"it was ended after {self._command.limit_seconds:g} s, its limit") from None
        if self._is_stopped.is_set() and code:
            raise InterruptedError("it was ended with the monitor")
        if code:
            raise ChildProcessError(f"exit code {code}")
        return "exit code 0"

    def _end(self, signal: int) -> None:
        with self._lock:
            running = self._running
        if running is not None and running.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal)

    def _remember(self, trigger: Trigger, calls: Sequence[Call]) -> None:
        with self._lock:
            kept = [
                one.model_copy(update={"calls": tuple(calls)}) if one.key == trigger.key else one
                for one in read_triggers(self._directory, trigger.model)
            ]
            self._write(kept, trigger.model)

    def _write(self, triggers: Sequence[Trigger], model: str) -> None:
        path = self._directory / model / STATE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _TRIGGERS.dump_json(tuple(triggers), indent=2).decode() + "\n")
