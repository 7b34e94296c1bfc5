"""What Locust's master and its workers tell each other about a run of ours, beside what Locust tells them.

The master has the payloads made, once, and each worker asks it for them: a worker needs no model store, and its start
costs nothing. Before the end the master has the workers wait for their last answers, because from then on Locust gives
them half a second to report.
"""

from collections.abc import Callable
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

ASK, PAYLOADS = "tabserve.ask", "tabserve.payloads"
DRAIN, DRAINED = "tabserve.drain", "tabserve.drained"


class MasterSide:
    """The master's part."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self._payloads: bytes | None = None
        self.seen: set[str] = set()
        """The workers that there have been; each asks for its payloads."""
        self._not_drained: set[str] = set()
        runner.register_message(ASK, self._on_ask)
        runner.register_message(DRAINED, self._on_drained)

    def hand_out(self, payloads: bytes) -> None:
        """Sends payloads to those who asked, and from now on to those who ask."""
        self._payloads = payloads
        for worker in self.seen:
            self._send(worker)

    def dismiss(self) -> None:
        """Ends those who wait for payloads that will never come; Locust's master would leave them behind."""
        for worker in self.seen:
            self._runner.send_message("quit", client_id=worker)
        if self.seen:
            gevent.sleep(0.5)  # as long as Locust gives its own last messages

    def drain(self, limit_seconds: float) -> None:
        """Ends all arrivals, and waits until every worker that is there has its answers."""
        self._not_drained = {worker.id for worker in self._runner.clients.running + self._runner.clients.spawning}
        for worker in list(self._not_drained):
            self._runner.send_message(DRAIN, client_id=worker)
        with gevent.Timeout(limit_seconds, exception=False):
            while self._not_drained:
                gevent.sleep(0.02)

    def _send(self, worker: str) -> None:
        self._runner.send_message(PAYLOADS, {"payloads": self._payloads}, client_id=worker)

    def _on_ask(self, msg: Any, **_: Any) -> None:
        self.seen.add(msg.node_id)
        if self._payloads is not None:
            self._send(msg.node_id)

    def _on_drained(self, msg: Any, **_: Any) -> None:
        self._not_drained.discard(msg.node_id)


class WorkerSide:
    """A worker's part.

    Args:
        on_payloads: gets the payloads, each time that the master sends some.
        drain: ends arrivals and returns when nothing is under way.
    """

    def __init__(self, runner: WorkerRunner, on_payloads: Callable[[bytes], None], drain: Callable[[], None]) -> None:
        self._runner = runner
        self._on_payloads = on_payloads
        self._drain = drain
        runner.register_message(PAYLOADS, self._receive)
        runner.register_message(DRAIN, self._on_drain, concurrent=True)
        runner.send_message(ASK)

    def _receive(self, msg: Any, **_: Any) -> None:
        self._on_payloads(msg.data["payloads"])

    def _on_drain(self, **_: Any) -> None:
        self._drain()
        self._runner.send_message(DRAINED)
