"""python -m monitoring.watch: the real process on a real log, what it serves, what it survives, and the trigger."""

import contextlib
import ctypes
import http.client
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from conftest import CUSTOMERS, ROOT, TrainedModels, environment, free_port, home_in_use, wait_for
from monitoring_parts import spread, write_predictions
from monitoring_results import NOON, batch, drift_of, keep, quality_of, reference_of
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tables import customers
from test_quality import coded, write_labels

from monitoring import watch
from monitoring.metrics import NotPushedError, push
from monitoring.reports import process as report_process
from monitoring.reports.keeping import keep_result, tidy
from monitoring.reports.process import ReportMaker
from monitoring.reports.runs import read_runs
from monitoring.results import DriftResult
from monitoring.watching import webhook
from monitoring.watching.newest import Newest
from monitoring.watching.retraining import BadStateError, Command, Retrainer, read_triggers
from monitoring.watching.rounds import Asked, Rounds
from monitoring.watching.schedule import Schedule, step_of
from monitoring.watching.trigger import Call, Decision, Facts, Rules, Trigger, decide
from monitoring.watching.turns import Turn
from monitoring.watching.web import Pages, server
from monitoring.watching.webhook import Webhook, WebhookFailedError, webhook_of
from tabserve.history.records import readable_place
from tabserve.history.window import BadQuestionError, Which

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


# --- the schedule


def test_windows_end_at_whole_multiples_of_the_step_whenever_somebody_gets_to_it() -> None:
    schedule = Schedule(HOUR)
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    for late in (3, 59, 3500):
        assert schedule.newest(noon + timedelta(seconds=late)) == noon
    assert schedule.newest(noon + timedelta(seconds=1)) == noon - HOUR, "the log has its last rows a second later"
    assert schedule.seconds_until_after(noon, noon + timedelta(minutes=59)) == 62
    assert schedule.seconds_until_after(noon, noon + DAY) == 0


def test_a_step_that_does_not_divide_a_day_has_disjoint_windows_too() -> None:
    schedule = Schedule(timedelta(hours=7))
    moments = (datetime(2026, 11, 22, tzinfo=UTC) + timedelta(minutes=5) * n for n in range(600))
    turns = sorted({schedule.newest(moment) for moment in moments})
    assert {later - turn for turn, later in itertools.pairwise(turns)} == {timedelta(hours=7)}


def test_a_step_may_be_of_seconds_and_anything_else_is_refused() -> None:
    assert [step_of(text) for text in ("20s", "90m", "7d")] == [timedelta(seconds=20), 1.5 * HOUR, 7 * DAY]
    for text in ("0s", "1.5h", "soon", "s", "-1h", ""):
        with pytest.raises(BadQuestionError, match="such as 20s, 90m"):
            step_of(text)


# --- the trigger: a pure decision

FIRST = reference_of(batch(4000, 0))
OLDER = {years: [batch(1000, seed, older_by=years) for seed in (1, 2)] for years in (0.0, 15.0)}
WINDOWS = {"quiet": OLDER[0.0], "warning": [OLDER[0.0][0], OLDER[15.0][1]], "alarm": OLDER[15.0]}
WINDOWS["too few rows"] = [batch(100, 1), batch(100, 2)]


def drift_run(level: str, turn: int) -> DriftResult:
    """Of the `turn`th day."""
    result = drift_of(WINDOWS[level], FIRST, until=NOON + DAY * turn)
    assert result.level == level
    return result


def facts(
    drift: Sequence[str] = (), quality: Sequence[str] = (), *, version: str = "1.0.0-abcdef", **more: object
) -> Facts:
    """Of a model that was trained yesterday, with runs of so many days, today the last."""
    n_days = max(len(drift), len(quality), 1)
    known = {"new_labels": 0, "trained_at": NOON + DAY * (n_days - 2), **more}
    return Facts(
        model="plans",
        version=version,
        now=NOON + DAY * (n_days - 1) + HOUR,
        turn=NOON + DAY * (n_days - 1),
        drift=[drift_run(level, day) for day, level in enumerate(drift)],
        quality=[quality_of(0.9, 500, level=level, until=NOON + DAY * day) for day, level in enumerate(quality)],
        **known,
    )


def trigger(day: int, *causes: str, version: str = "1.0.0-abcdef", calls: Sequence[Call] = ()) -> Trigger:
    turn = NOON + DAY * day
    return Trigger(
        at=turn + timedelta(minutes=1),
        turn=turn,
        model="plans",
        version=version,
        causes=causes,
        reasons=causes,
        key=f"plans:{version}:{day}",
        calls=calls,
    )


@pytest.mark.parametrize(
    ("runs", "causes"),
    [
        (["alarm"], ()),
        (["alarm", "alarm"], ("drift",)),
        (["warning", "warning"], ()),
        (["alarm", "quiet", "alarm"], ()),
        (["alarm", "warning", "alarm"], ()),
        (["alarm", "too few rows", "alarm"], ("drift",)),
        (["alarm", "alarm", "too few rows"], ()),
        (["alarm", "alarm", "quiet"], ()),
        ([], ()),
    ],
    ids=" ".join,
)
def test_drift_is_a_cause_once_two_consecutive_runs_confirmed_it(runs: list[str], causes: tuple[str, ...]) -> None:
    assert decide(facts(runs), Rules(), []).causes == causes


def test_runs_whose_windows_overlap_confirm_each_other_only_after_a_whole_window() -> None:
    runs = [drift_of(OLDER[15.0], FIRST, until=NOON + HOUR * hour) for hour in range(25)]
    for n_runs, causes in ((2, ()), (24, ()), (25, ("drift",))):
        known = replace(facts(), drift=runs[:n_runs])
        assert decide(known, Rules(), []).causes == causes, n_runs


def test_another_column_each_time_is_no_drift_that_lasts() -> None:
    other = drift_of([batch(1000, seed) for seed in (3, 4)], FIRST, until=NOON)
    income = [c.model_copy(update={"level": "alarm"}) if c.name == "income" else c for c in other.columns]
    runs = [other.model_copy(update={"columns": tuple(income), "level": "alarm"}), drift_run("alarm", 1)]
    known = replace(facts(), drift=runs)
    assert not decide(known, Rules(), []).due


@pytest.mark.parametrize(
    ("known", "rules", "causes"),
    [
        (facts(quality=["alarm"]), Rules(), ("quality",)),
        (facts(quality=["warning"]), Rules(), ()),
        (facts(quality=["alarm", "quiet"]), Rules(), ()),
        (facts(trained_at=NOON - 91 * DAY), Rules(), ("age",)),
        (facts(trained_at=NOON - 89 * DAY), Rules(), ()),
        (facts(trained_at=NOON - 91 * DAY), Rules(oldest_days=0), ()),
        (facts(new_labels=5000), Rules(), ("labels",)),
        (facts(new_labels=4999), Rules(), ()),
        (facts(new_labels=9999), Rules(new_labels=0), ()),
        (facts(["alarm", "alarm"], ["alarm"] * 2, new_labels=5000), Rules(), ("drift", "quality", "labels")),
    ],
)
def test_quality_age_and_labels_are_causes(known: Facts, rules: Rules, causes: tuple[str, ...]) -> None:
    decision = decide(known, rules, [])
    assert (decision.due, decision.causes, len(decision.reasons)) == (bool(causes), causes, len(causes))


FAILED = [Call(what="command", outcome="failed", said="exit code 1")]


@pytest.mark.parametrize(
    ("known", "past", "causes"),
    [
        # Called for already, and no quiet run since, however long ago.
        (facts(["alarm"] * 9), [trigger(1, "drift")], ()),
        (facts(["alarm", "alarm", "warning", "alarm", "alarm"]), [trigger(1, "drift")], ()),
        (facts(["alarm", "alarm", "too few rows", "alarm", "alarm"]), [trigger(1, "drift")], ()),
        # A quiet run since: it may call again, once the drift lasts again.
        (facts(["alarm", "alarm", "quiet", "alarm"]), [trigger(1, "drift")], ()),
        (facts(["alarm", "alarm", "quiet", "alarm", "alarm"]), [trigger(1, "drift")], ("drift",)),
        (facts(quality=["alarm", "quiet", "alarm"]), [trigger(0, "quality")], ("quality",)),
        (facts(quality=["alarm", "alarm", "alarm"]), [trigger(0, "quality")], ()),
        # Another cause calls, for itself alone.
        (facts(["alarm"] * 4, ["quiet", "quiet", "quiet", "alarm"]), [trigger(1, "drift")], ("quality",)),
        # Another version.
        (facts(["alarm"] * 4), [trigger(1, "drift", version="0.9.0-abcdef")], ("drift",)),
        (facts(["quiet"] * 4, trained_at=NOON - 99 * DAY), [trigger(0, "age")], ()),
        (facts(["quiet"] * 4, new_labels=6000), [trigger(0, "labels", version="0.9.0-abcdef")], ("labels",)),
        # The cool-down is of the model, whatever the cause and the version.
        (facts(quality=["quiet", "alarm"]), [trigger(1, "drift")], ()),
        (facts(quality=["quiet", "alarm"]), [trigger(1, "drift", version="0.9.0-abcdef")], ()),
        (facts(quality=["quiet", "alarm"]), [trigger(0, "drift")], ("quality",)),
        # A call that failed did not serve its cause; the cool-down holds for it too.
        (facts(["alarm"] * 2), [trigger(1, "drift", calls=FAILED)], ()),
        (facts(["alarm"] * 4), [trigger(1, "drift", calls=FAILED)], ("drift",)),
        (facts(["alarm"] * 4), [trigger(1, "drift", calls=[Call(what="command")])], ()),
    ],
)
def test_a_cause_calls_again_only_after_it_was_quiet_and_the_cool_down_passed(
    known: Facts, past: list[Trigger], causes: tuple[str, ...]
) -> None:
    assert decide(known, Rules(), past).causes == causes


def test_a_decision_that_nothing_is_due_has_no_reason() -> None:
    assert decide(facts(["quiet"] * 3, ["quiet"] * 3), Rules(), []) == Decision(due=False)


# --- what is called


@contextlib.contextmanager
def receiver(*statuses: int) -> Iterator[tuple[str, list[tuple[dict, str]]]]:
    """Answers with these statuses, the last one for ever; what it was sent, and with which key."""
    got: list[tuple[dict, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((json.loads(body), self.headers["Idempotency-Key"]))
            self.send_response(statuses[min(len(got), len(statuses)) - 1])
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/hook?token=secret", got
        finally:
            listening.shutdown()


@pytest.mark.parametrize(
    ("statuses", "n_calls", "said"),
    [
        ((200,), 1, "HTTP 200"),
        ((500, 429, 202), 3, "HTTP 202"),
        ((500,), 3, "3 attempts, the last: HTTP 500"),
        ((404,), 1, "HTTP 404, which another attempt would not change"),
        ((302,), 1, "HTTP 302, which another attempt would not change"),
    ],
)
def test_a_webhook_is_tried_three_times_with_one_key(statuses: tuple[int, ...], n_calls: int, said: str) -> None:
    with receiver(*statuses) as (url, got):
        hook = Webhook(url, first_pause_seconds=0.01)
        try:
            found = hook.post({"model": "plans"}, "a key", threading.Event())
        except WebhookFailedError as error:
            found = str(error)
    assert found == said
    assert got == [({"model": "plans"}, "a key")] * n_calls
    assert "secret" not in found + repr(hook)


def test_a_webhook_that_is_away_is_a_failure_and_what_is_no_address_is_refused() -> None:
    with pytest.raises(WebhookFailedError, match=f"{webhook.ATTEMPTS} attempts, the last: .*refused"):
        Webhook("http://127.0.0.1:9", first_pause_seconds=0.01).post({}, "", threading.Event())
    for url in ("ftp://host/x", "host/x", "http://", "http://[", "http://host:99999/"):
        with pytest.raises(BadQuestionError, match="such as https://host/path"):
            webhook_of(url)


def test_what_answers_but_does_not_speak_http_is_a_failure_like_any_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def greet() -> None:
            with contextlib.suppress(OSError):  # the test is over
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(b"SSH-2.0-other\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(WebhookFailedError, match=f"{webhook.ATTEMPTS} attempts, the last: SSH-2.0"):
            Webhook(address, first_pause_seconds=0.01).post({}, "", threading.Event())
        with pytest.raises(NotPushedError, match="cannot be reached: SSH-2.0"):
            push([drift_of(OLDER[0.0], FIRST)], address)


def calls_of(directory: Path) -> list[list[tuple[str, str, str]]]:
    return [[(c.what, c.outcome, c.said) for c in one.calls] for one in read_triggers(directory, "plans")]


def test_a_trigger_runs_the_command_without_a_shell_and_keeps_how_it_ended(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        f"import os; open({str(said)!r}, 'a').write(os.environ['TABSERVE_RETRAIN_MODEL'] + ': ' + "
        "os.environ['TABSERVE_RETRAIN_REASONS'] + chr(10))"
    )
    with receiver(200) as (url, got):
        retrainer = Retrainer(tmp_path, Command((sys.executable, "-c", code)), Webhook(url))
        retrainer.take(trigger(0, "drift", "age"))
        wait_for(lambda: [c[1] for c in calls_of(tmp_path)[0]] == ["succeeded", "succeeded"])
    assert said.read_text() == "plans: drift; age\n"
    ((told, key),) = got
    assert (told["model"], told["version"], told["reasons"]) == ("plans", "1.0.0-abcdef", ["drift", "age"])
    assert told["idempotency_key"] == key == trigger(0).key
    assert calls_of(tmp_path) == [[("webhook", "succeeded", "HTTP 200"), ("command", "succeeded", "exit code 0")]]


def test_a_command_that_fails_or_hangs_is_counted_and_the_next_one_runs(tmp_path: Path) -> None:
    failures: list[int] = []
    script = "import os, sys, time; time.sleep(60) if '-1' in os.environ['TABSERVE_RETRAIN_KEY'] else sys.exit(7)"
    command = Command((sys.executable, "-c", script), limit_seconds=2)
    retrainer = Retrainer(tmp_path, command, None, lambda: failures.append(1))
    for day in (-1, 0):
        retrainer.take(trigger(day, "age"))
    wait_for(lambda: len(failures) == 2)
    wait_for(lambda: calls_of(tmp_path)[1][0][1] == "failed")
    assert calls_of(tmp_path) == [
        [("command", "failed", "it was ended after 2 s, its limit")],
        [("command", "failed", "exit code 7")],
    ]


def test_without_command_and_webhook_a_trigger_is_only_written_down(tmp_path: Path) -> None:
    Retrainer(tmp_path, None, None).take(trigger(0, "age"))
    assert read_triggers(tmp_path, "plans") == (trigger(0, "age"),)


def test_stopping_ends_a_command_and_says_so_of_it_and_of_what_waits(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    code = f"import time; open({str(begun)!r}, 'w').close(); time.sleep(60)"
    retrainer = Retrainer(tmp_path, Command((sys.executable, "-c", code)), None)
    for day in (0, 2):
        retrainer.take(trigger(day, "age"))
    wait_for(begun.exists)
    retrainer.stop()
    assert [[c[1:] for c in calls] for calls in calls_of(tmp_path)] == [
        [("failed", "it was ended with the monitor")],
        [("failed", "the monitor was stopped before it was started")],
    ]


def test_triggers_that_cannot_be_read_call_nothing_and_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "retraining.json"
    path.parent.mkdir()
    path.write_text('[{"at": ')
    retrainer = Retrainer(tmp_path, Command((sys.executable, "-c", "open('x', 'w')")), None)
    with pytest.raises(BadStateError, match="restore it, or delete it to begin anew"):
        retrainer.take(trigger(0, "age"))
    assert path.read_text() == '[{"at": '


# --- what is shown


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By the name and the values of the labels, in the order of the labels' names."""
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(set(names)) == len(names), "a family stands there twice"
    families = text_string_to_metric_families(text)
    return {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for f in families for s in f.samples}


def shown(newest: Newest) -> dict[tuple[str, ...], float]:
    return samples(generate_latest(newest.registry()).decode())


def test_a_retired_version_vanishes_and_one_whose_judgement_failed_stays_until_it_is_old() -> None:
    now = datetime.now(UTC)
    old, new = (drift_of(OLDER[0.0], FIRST, until=now, version=version) for version in ("1.0.0-aaaaaa", "2.0.0-bbbbbb"))
    newest = Newest(HOUR)
    versions = lambda: {key[2] for key in shown(newest) if key[0] == "tabserve_drift_window_rows"}  # noqa: E731

    newest.found("drift", Turn((old, new), ()))
    assert versions() == {"1.0.0-aaaaaa", "2.0.0-bbbbbb"}
    newest.found("drift", Turn((new,), ()))
    assert versions() == {"2.0.0-bbbbbb"}
    newest.found("drift", Turn((), ("plans:2.0.0-bbbbbb",)))
    assert versions() == {"2.0.0-bbbbbb"}
    stale = new.model_copy(update={"made_at": now - 2 * HOUR})
    newest.found("drift", Turn((stale,), ()))
    assert versions() == set()
    assert ("tabserve_monitor_last_success_timestamp_seconds", "drift", "", "") in shown(newest)


def test_what_is_due_is_a_gauge_for_each_cause() -> None:
    newest = Newest(HOUR)
    newest.found("drift", Turn((drift_of(OLDER[0.0], FIRST, until=datetime.now(UTC)),), ()))
    newest.due({("plans", "1.0.0-abcdef"): ["age"], ("gone", "1"): ["age"]})
    due = {key[1:]: value for key, value in shown(newest).items() if key[0] == "tabserve_retraining_due"}
    assert due == {
        ("plans", "1.0.0-abcdef", cause): float(cause == "age") for cause in ("drift", "quality", "age", "labels")
    }


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """A server over a folder with one run, and a secret beside it; host, port and the folder of the run."""
    kept = tmp_path / "kept"
    folder = keep(kept, drift_of(OLDER[15.0], FIRST), "drift")
    tidy(kept)
    (tmp_path / "secret.json").write_text("secret")
    (kept / "plans" / "retraining.json").write_text("secret")
    (folder / ".unfinished.html").write_text("secret")
    (folder / "key.pem").write_text("secret")
    (folder / "link.html").symlink_to(tmp_path / "secret.json")
    wrong = ["a round has not ended"]
    with server(Pages(kept, Newest(HOUR).registry, lambda: wrong[0]), "127.0.0.1", 0) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        yield "127.0.0.1", listening.server_port, folder
        listening.shutdown()


def asked(pages: tuple[str, int, Path], path: str, method: str = "GET") -> tuple[int, bytes, http.client.HTTPMessage]:
    """With the path as it stands; httpx would tidy it up."""
    connection = http.client.HTTPConnection(*pages[:2], timeout=30)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_the_index_and_the_files_of_runs_are_served(pages: tuple[str, int, Path]) -> None:
    status, body, headers = asked(pages, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"plans:1.0.0-abcdef" in body
    assert asked(pages, "/index.html")[1] == body
    run = f"/plans/1.0.0-abcdef/drift/{pages[2].name}"
    assert asked(pages, f"{run}/drift.html")[1] == b"<p>a report"
    status, body, headers = asked(pages, f"{run}/result.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    DriftResult.model_validate_json(body)
    status, body, headers = asked(pages, f"{run}/result.json", "HEAD")
    assert (status, body, int(headers["Content-Length"]) > 1000) == (200, b"", True)
    assert asked(pages, "/health")[:2] == (503, b'{"status": "a round has not ended"}')
    assert asked(pages, "/", "POST")[0] == 501


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.json",
        "/plans/1.0.0-abcdef/drift/../../../../secret.json",
        "/%2e%2e/%2e%2e/drift/%2e%2e/secret.json",
        "/plans/1.0.0-abcdef/drift/RUN/..%2f..%2f..%2f..%2f..%2fsecret.json",
        "/plans/1.0.0-abcdef/drift/..%2f..%2f..%2f../secret.json",
        "//etc/passwd",
        "/plans/1.0.0-abcdef/drift/RUN/link.html",
        "/plans/1.0.0-abcdef/drift/RUN/.unfinished.html",
        "/plans/1.0.0-abcdef/drift/RUN/key.pem",
        "/plans/1.0.0-abcdef/drift/RUN/",
        "/plans/1.0.0-abcdef/drift/RUN/result.json%00",
        "/plans/1.0.0-abcdef/other/RUN/result.json",
        "/plans/retraining.json",
        "/plans",
        "/.watch.lock",
    ],
)
def test_nothing_else_is_served(pages: tuple[str, int, Path], path: str) -> None:
    status, body, _ = asked(pages, path.replace("RUN", pages[2].name))
    assert (status, b"secret" in body) == (404, False)


# --- rounds, one by one


class Site:
    """A trained model, a log of it, and rounds over that."""

    def __init__(self, trained: TrainedModels, folder: Path) -> None:
        self.home, self.tag = trained.home, trained.tag(CUSTOMERS)
        self.log, self.kept = folder / "log", folder / "kept"
        model = trained.load(CUSTOMERS)
        self.contract, self.rows = model.contract, coded(model.contract, customers(1200, seed=99))
        self.scores = model.engine.predict(self.rows)
        self.newest = Newest(3 * HOUR)
        self.today = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

    @property
    def model(self) -> str:
        return self.tag.partition(":")[0]

    def write(self, since: datetime, length: timedelta, *, is_shifted: bool = False) -> list[str]:
        rows = self.rows.copy()
        if is_shifted:
            rows[:, self.contract.names.index("age")] = 80
        times = spread(len(rows), since, length)
        return write_predictions(self.log, self.contract, rows, self.scores, times, model_version=self.tag)

    def wrong(self) -> list[str]:
        """Labels that are what was not predicted."""
        said = self.scores.argmax(axis=1)
        return [str(self.contract.classes[code - 1]) for code in said]

    def rounds(self, retrainer: Retrainer, rules: Rules = Rules(new_labels=0), **more: object) -> Rounds:  # noqa: B008
        place = readable_place(self.log.as_uri())
        asked = Asked(place, Which(), "training", HOUR, DAY, timedelta(), [])
        return Rounds(
            asked, self.kept, self.newest, rules=rules, retrainer=retrainer, **{"makes_reports": False, **more}
        )


@pytest.fixture
def site(models: TrainedModels, tmp_path: Path) -> Iterator[Site]:
    with home_in_use(models.home):
        yield Site(models, tmp_path)


def test_a_run_kept_by_hand_of_a_later_window_is_not_what_the_trigger_goes_by(site: Site) -> None:
    for hours_ago in range(4, 0, -1):
        site.write(site.today - hours_ago * HOUR, HOUR, is_shifted=True)
    site.rounds(Retrainer(site.kept, None, None)).run(site.today - HOUR)
    (result,) = [run.result for run in read_runs(site.kept).runs if isinstance(run.result, DriftResult)]
    window = result.windows[-1].model_copy(update={"since": site.today, "until": site.today + HOUR})
    quiet = [column.model_copy(update={"level": "quiet"}) for column in result.columns]
    by_hand = result.model_copy(update={"windows": (window, window), "columns": tuple(quiet), "level": "quiet"})
    keep_result(by_hand, site.kept)
    site.rounds(Retrainer(site.kept, None, None)).run(site.today)
    (only,) = read_triggers(site.kept, site.model)
    assert only.causes == ("drift",)


def test_what_fails_for_one_model_stops_the_trigger_of_no_other(site: Site) -> None:
    for hours_ago in (1, 2, 3):
        site.write(site.today - hours_ago * HOUR, HOUR)
    rules = Rules(oldest_days=1, new_labels=0)
    rounds = site.rounds(Retrainer(site.kept, None, None), rules)
    damaged = site.kept / "damaged" / "retraining.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[{")
    known = [(name, "1.0.0-abcdef", site.today - DAY) for name in ("damaged", site.model)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("monitoring.watching.rounds._trained_last", lambda _: iter(known))
        rounds.run(site.today)
    assert read_triggers(site.kept, site.model)[0].causes == ("age",)
    assert shown(site.newest)["tabserve_monitor_failures_total", "retraining"] == 1


def test_drift_that_lasts_is_called_for_once_and_never_again_after_a_restart(site: Site, tmp_path: Path) -> None:
    for hours_ago in range(6, 0, -1):
        site.write(site.today - hours_ago * HOUR, HOUR, is_shifted=True)
    for hours_ago in (3, 2, 1, 0, 0):  # the last turn twice, as after a restart
        retrainer = Retrainer(site.kept, None, None)
        site.rounds(retrainer, Rules(cool_down=timedelta(0), new_labels=0)).run(site.today - hours_ago * HOUR)
    (only,) = read_triggers(site.kept, site.model)
    assert (only.causes, only.turn, f"{only.model}:{only.version}") == (("drift",), site.today - 2 * HOUR, site.tag)
    assert "feature age" in only.reasons[0]
    due = {key[-1]: value for key, value in shown(site.newest).items() if key[0] == "tabserve_retraining_due"}
    assert due == {"drift": 1, "quality": 0, "age": 0, "labels": 0}


def test_labels_since_the_training_are_counted_in_the_log(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)  # the model was trained a moment ago, and predictions of before do not count
    ids = site.write(now - timedelta(milliseconds=10), timedelta(milliseconds=9))
    before = site.write(now - 3 * HOUR, HOUR)
    write_labels(site.log, [*ids[:1000], *before], site.wrong()[:1000] + site.wrong())
    for wanted, n_triggers in ((1001, 0), (1000, 1)):
        site.rounds(Retrainer(site.kept, None, None), Rules(cool_down=timedelta(0), new_labels=wanted)).run(
            site.today - HOUR
        )
        found = [one for one in read_triggers(site.kept, site.model) if "labels" in one.causes]
        assert len(found) == n_triggers
    assert "1,000 labels of predictions since the training, 1,000 wanted" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_hides_no_number(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.write(site.today - HOUR, HOUR)
    site.kept.write_text("a file")
    site.rounds(Retrainer(site.kept, None, None)).run(site.today)
    assert shown(site.newest)["tabserve_drift_window_rows", *site.tag.split(":")] == len(site.rows)
    assert shown(site.newest)["tabserve_monitor_failures_total", "reports"] == 4  # each result, and the index twice
    assert "keeping the drift of " in caplog.text
    assert "keeping the quality of " in caplog.text


def test_reports_are_made_by_another_process_after_the_numbers_are_there(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(site.home))
    for name in [name for name in sys.modules if name.partition(".")[0] == "evidently"]:
        monkeypatch.delitem(sys.modules, name)  # another test's
    site.write(site.today - HOUR, HOUR)
    rounds = site.rounds(Retrainer(site.kept, None, None), makes_reports=True)
    rounds.run(site.today)
    assert ("tabserve_drift_window_rows", *site.tag.split(":")) in shown(site.newest)
    assert not list(site.kept.rglob("drift.html"))
    wait_for(lambda: "drift.html" in (site.kept / "index.html").read_text(), 120)
    rounds.reports.stop()  # those of quality were next
    (page,) = site.kept.rglob("drift.html")
    assert len(page.read_text()) > 1_000_000, "Evidently's scripts are in it"
    assert shown(site.newest)["tabserve_monitor_failures_total", "reports"] == 0
    assert "evidently" not in sys.modules


@pytest.mark.parametrize(
    ("code", "said"),
    [("sleep 60", "were not made within 0.5 s"), ("echo 'out of memory' >&2; kill -9 $$", "out of memory")],
)
def test_reports_that_hang_or_crash_are_counted_and_the_next_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str, said: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n[ $3 = good ] && exit 0\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(report_process.sys, "executable", str(program))
    made, failed = [], []
    maker = ReportMaker("file:///log", lambda: made.append(1), lambda: failed.append(1), limit_seconds=0.5)
    maker.make(Path("bad"))
    wait_for(lambda: failed)
    wait_for(lambda: said in caplog.text)
    maker.make(Path("good"))
    wait_for(lambda: made)
    maker.stop()


def test_reports_that_take_longer_than_a_turn_leave_the_other_kind_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, go_on, began = tmp_path / "python", tmp_path / "go-on", tmp_path / "began"
    program.write_text(f"#!/bin/sh\necho $3 >> {began}\nuntil [ -e {go_on} ]; do sleep 0.02; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(report_process.sys, "executable", str(program))
    made = []
    maker = ReportMaker("file:///log", lambda: made.append(1), lambda: None)
    maker.make(Path("drift/1"))
    wait_for(began.exists)
    for folder in ("quality/1", "drift/2", "quality/2"):  # two turns, of which the second finds the first waiting
        maker.make(Path(folder))
    go_on.touch()
    wait_for(lambda: len(made) == 3)
    maker.stop()
    assert began.read_text().split() == ["drift/1", "quality/2", "drift/2"]


# --- the process


class Monitor:
    """`python -m monitoring.watch` on a free port."""

    def __init__(self, site: Site, *arguments: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "monitoring.watch", "--log-url", site.log.as_uri(), "--port", str(self.port)]
        command += ["--reports", str(site.kept), "--every", "1s", "--window", "5m", "--no-reports", *arguments]
        self.said = site.kept.parent / f"said-{self.port}"
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(site.home), stdout=out, stderr=out, start_new_session=True
            )

    def get(self, path: str) -> httpx.Response:
        assert self.process.poll() is None, self.said.read_text()
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def metrics(self) -> dict[tuple[str, ...], float]:
        try:
            return samples(self.get("/metrics").text)
        except httpx.TransportError:  # it is starting
            return {}

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def watching(site: Site, *arguments: str) -> Iterator[Monitor]:
    monitor = Monitor(site, *arguments)
    try:
        yield monitor
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(monitor.process.pid, signal.SIGKILL)
        monitor.process.wait()


FAILURES = ("tabserve_monitor_failures_total", "drift")


def test_the_process_shows_what_it_finds_and_outlives_a_log_that_is_away(site: Site) -> None:
    tag = site.tag.split(":")
    alarm = ("tabserve_drift_alarm", "feature:age", *tag)
    rows = ("tabserve_drift_window_rows", *tag)
    now = datetime.now(UTC)
    for _ in range(3):
        site.write(now - HOUR / 6, HOUR / 6)
    with watching(site) as monitor:
        wait_for(lambda: rows in monitor.metrics(), 60)
        found = monitor.metrics()
        assert (found[alarm], found[FAILURES]) == (0, 0)
        assert found["tabserve_monitor_last_success_timestamp_seconds", "drift", "", ""] > now.timestamp()
        assert found["tabserve_monitor_run_duration_seconds", "drift"] > 0
        assert monitor.get("/health").json() == {"status": "ok"}
        assert site.tag in monitor.get("/").text

        for _ in range(9):
            site.write(now - HOUR / 6, HOUR / 6, is_shifted=True)
        wait_for(lambda: monitor.metrics().get(alarm) == 1)

        site.log.rename(site.log.with_name("away"))
        wait_for(lambda: monitor.metrics()[FAILURES] >= 2)
        wait_for(lambda: rows not in monitor.metrics())
        assert alarm not in monitor.metrics(), "old numbers would look as if all was well"
        assert monitor.get("/health").status_code == 200
        site.log.with_name("away").rename(site.log)
        wait_for(lambda: monitor.metrics().get(alarm) == 1)

        assert monitor.end() == 0
        said = monitor.said.read_text()
    assert "drift failed: there is no prediction log at file://" in said
    assert "age (KL " in said
    assert "Traceback" not in said


def test_it_ends_whichever_of_its_threads_a_signal_is_delivered_to(site: Site) -> None:
    """Seen once: it went on for ever, because only the thread that waits for a signal's handler runs it."""
    site.write(datetime.now(UTC) - HOUR / 6, HOUR / 6)
    with watching(site) as monitor:
        wait_for(lambda: FAILURES in monitor.metrics())
        main = monitor.process.pid
        other = next(int(task.name) for task in Path(f"/proc/{main}/task").iterdir() if int(task.name) != main)

        assert ctypes.CDLL(None).tgkill(main, other, signal.SIGTERM) == 0

        assert monitor.process.wait(60) == 0
    assert "ended by SIGTERM" in monitor.said.read_text()


def test_quality_that_fell_calls_the_command_and_the_webhook_once_and_not_again_after_a_restart(site: Site) -> None:
    ids = site.write(datetime.now(UTC) - HOUR, HOUR / 2)
    write_labels(site.log, ids, site.wrong())
    called = site.kept.parent / "called"
    code = f"import os; open({str(called)!r}, 'a').write(os.environ['TABSERVE_RETRAIN_REASONS'] + chr(10))"
    command = shlex.join([sys.executable, "-c", code])
    rounds = ("tabserve_monitor_last_success_timestamp_seconds", "quality", "", "")
    with receiver(503, 200) as (url, got):
        arguments = ["--on-retrain", command, "--retrain-webhook", url, "--retrain-cool-down", "1s"]
        for number in (signal.SIGTERM, signal.SIGINT):
            with watching(site, *arguments) as monitor:
                wait_for(lambda m=monitor: rounds in m.metrics(), 60)
                wait_for(called.exists)
                first = monitor.metrics()[rounds]
                wait_for(lambda m=monitor, t=first: m.metrics()[rounds] > t + 1)
                assert monitor.metrics()["tabserve_retraining_due", *site.tag.split(":"), "quality"] == 1
                assert monitor.end(number) == 0
    (reasons,) = called.read_text().splitlines()
    assert reasons.startswith("quality fell: accuracy ")
    assert [told["reasons"] for told, _ in got] == [[reasons]] * 2
    assert len({key for _, key in got}) == 1, "the second attempt is the same call"
    (kept,) = read_triggers(site.kept, site.model)
    assert [call.outcome for call in kept.calls] == ["succeeded", "succeeded"]


def test_what_cannot_begin_is_a_sentence_and_exit_code_2(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(Pages(tmp_path, site.newest.registry, lambda: ""), "127.0.0.1", 0) as taken:
        for arguments, sentence in (
            (["--every", "soon"], "such as 20s, 90m"),
            (["--port", str(taken.server_port)], "Address already in use; choose --port"),
            (["--port", "99999"], "choose --port"),
            (["--every", "3m"], "choose a longer step, or a shorter window"),
            (["--log-url", "null:"], "nothing is kept"),
            (["--log-url", "ftp://a/b"], "no address of a place"),
            (["--on-retrain", "no-such-program now"], "there is no program 'no-such-program'"),
            (["--on-retrain", "make 'train"], "No closing quotation"),
            (["--on-retrain", ""], "there is no program"),
            (["--retrain-webhook", "somewhere"], "such as https://host/path"),
            (["--retrain-after-days", "-1"], "0, for never, or more"),
            (["--against", "last-week", "--window", "8d"], "7d at the most"),
        ):
            caplog.clear()
            common = ["--log-url", site.log.as_uri(), "--reports", str(site.kept)]
            assert watch.main([*common, *arguments]) == 2, arguments
            assert sentence in caplog.text
            assert "Traceback" not in caplog.text
    site.kept.mkdir(exist_ok=True)
    with watch._alone_in(site.kept):
        assert watch.main(["--log-url", site.log.as_uri(), "--reports", str(site.kept)]) == 2
        assert "another monitor keeps its results in" in caplog.text


def test_one_place_keeps_runs_and_the_reports_of_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring.reports.runs.delete_old_pages.__defaults__", (2,))
    for day in range(4):
        keep(tmp_path, drift_run("quiet", day), "drift")
    tidy(tmp_path)
    assert (len(list(tmp_path.rglob("drift.html"))), len(list(tmp_path.rglob("result.json")))) == (2, 4)
    assert (tmp_path / "index.html").is_file()
