"""How a canary goes up, and back, whatever divides the requests and whoever counts them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import BadStatusLine
from pathlib import Path

import pytest

from deploy import canary
from deploy.canary import CanaryAwayError, Look, Nginx, NotMovedError, Plan, release
from tabserve.lifecycle.canary_judge import Limits, Seen

pytestmark = pytest.mark.deploy


def test_by_itself_each_of_four_steps_is_observed_for_five_minutes() -> None:
    options = canary._parser().parse_args(["nginx", "--file", "canary.conf", "--prometheus", "http://127.0.0.1:9090"])

    assert list(options.steps) == [5, 25, 50, 100]
    assert options.seconds == 300
    assert (options.error_threshold, options.latency_threshold) == (0.01, 300)


def test_what_is_written_for_nginx_is_a_share_of_the_requests(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path / "canary.conf", "127.0.0.1:1", ["true"])

    assert "default stable" in nginx.configuration(0)
    assert "split_clients" in nginx.configuration(5)
    assert "5.00% canary; * stable;" in nginx.configuration(5)
    assert "default canary" in nginx.configuration(100)


def test_a_reload_that_fails_leaves_the_file_as_it_was_and_is_said(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path / "canary.conf", "127.0.0.1:1", ["false"])
    nginx.file.write_text("before")

    with pytest.raises(NotMovedError, match="false ended with 1"):
        nginx.send(5)
    assert nginx.file.read_text() == "before"


@dataclass
class Remembers:
    """What it was told to send; the shares of `cannot` could not be set, `n_times` each."""

    cannot: Sequence[float] = ()
    n_times: int = 1
    sent: list[float] = field(default_factory=list)

    def send(self, percent: float) -> None:
        self.sent.append(percent)
        if percent in self.cannot and self.sent.count(percent) <= self.n_times:
            raise NotMovedError("nginx ended with 1")


GOOD = Seen(1000, 0, 0.01, n_slow=0)
SOON = Plan([5, 50, 100], 0.01, Limits())


def sees(of_canary: Seen | Exception, stable: Seen = GOOD, good: int = 1) -> Look:
    """So many good looks, and then another one for ever."""
    looks = [0]

    def look(_: float) -> tuple[Seen, Seen]:
        looks[0] += 1
        if looks[0] <= good:
            return GOOD, GOOD
        if isinstance(of_canary, Exception):
            raise of_canary
        return stable, of_canary

    return look


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "PAUSE_SECONDS", 0.001)


def test_whoever_ends_it_leaves_all_requests_to_the_stable_version(caplog: pytest.LogCaptureFixture) -> None:
    traffic, is_over = Remembers(), threading.Event()

    def look(_: float) -> tuple[Seen, Seen]:
        if traffic.sent:
            is_over.set()
        return GOOD, GOOD

    assert release(traffic, look, Plan([5, 100], 0.01, Limits()), is_over) == canary.STOPPED
    assert traffic.sent == [5, 0]
    assert "ended at 5 %; the canary has no requests any more" in caplog.text


@pytest.mark.parametrize("away", [OSError("connection refused"), BadStatusLine("?"), CanaryAwayError("no canary up")])
def test_a_canary_that_nobody_watches_or_that_is_not_there_gets_no_request(
    away: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    traffic = Remembers()

    assert release(traffic, sees(away, good=0), SOON, threading.Event()) == canary.GONE_BACK
    assert traffic.sent == []
    assert "not begun, the canary has no requests" in caplog.text


def test_where_prometheus_says_nothing_for_a_whole_observation_the_canary_goes_back() -> None:
    traffic = Remembers()

    code = release(traffic, sees(OSError("refused"), good=1 + canary.LOOKS), SOON, threading.Event())

    assert (code, traffic.sent) == (canary.GONE_BACK, [5, 50, 0])


def test_what_fails_goes_back_at_the_first_look_and_what_is_slow_only_when_all_was_seen() -> None:
    def n_looks(of_canary: Seen) -> int:
        look, looks = sees(of_canary), []

        def counted(seconds: float) -> tuple[Seen, Seen]:
            looks.append(seconds)
            return look(seconds)

        assert release(Remembers(), counted, SOON, threading.Event()) == canary.GONE_BACK
        return len(looks) - 1  # without the one before it gets a request

    assert n_looks(Seen(1000, 500, 0.01, n_slow=0)) == 1
    assert n_looks(Seen(1000, 0, 2.0, n_slow=500)) == canary.LOOKS


def test_a_canary_that_its_share_does_not_reach_goes_back() -> None:
    """Whatever stands before it answers for it; nobody of the canary has seen an error."""
    traffic = Remembers()

    code = release(traffic, sees(Seen(90, 0, 0.01, n_slow=0), stable=Seen(10_000, 0, 0.01)), SOON, threading.Event())

    assert (code, traffic.sent) == (canary.GONE_BACK, [5, 0])


def test_a_share_that_cannot_be_set_takes_the_canary_back(caplog: pytest.LogCaptureFixture) -> None:
    traffic = Remembers(cannot=[50])

    assert release(traffic, sees(GOOD), SOON, threading.Event()) == canary.STOPPED
    assert traffic.sent == [5, 50, 0]
    assert "50 % could not be set, the canary has no requests any more: nginx ended with 1" in caplog.text


def test_going_back_is_tried_again_and_where_it_cannot_be_done_a_person_is_told() -> None:
    stubborn = Remembers(cannot=[0], n_times=canary.TRIES_BACK - 1)
    assert release(stubborn, sees(Seen(1000, 500)), SOON, threading.Event()) == canary.GONE_BACK
    assert stubborn.sent == [5, *[0] * canary.TRIES_BACK]

    with pytest.raises(NotMovedError):
        release(Remembers(cannot=[0], n_times=99), sees(Seen(1000, 500)), SOON, threading.Event())


def test_a_file_that_cannot_be_written_is_a_share_that_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(NotMovedError, match="No such file"):
        Nginx(tmp_path / "missing" / "canary.conf", "127.0.0.1:1", ["true"]).send(5)
