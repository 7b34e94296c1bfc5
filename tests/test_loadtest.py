"""Real Locust against real services, and against small fakes that do what a service must not do."""

import json
import re
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from conftest import BUILT_IN, CUSTOMERS, SPEND, Service, TrainedModels, free_port, home_in_use
from contracts import contracts
from hypothesis import given, settings
from locusts import METADATA, Done, faking, finish, locust, ports, start

from loadtest import payloads, slo
from loadtest.errors import BadInputError
from loadtest.payloads import Wanted
from tabserve.contract import Contract
from tabserve.validation import InvalidRowsError, RowReader

PATIENT = "p99=60s"  # several of these runs share a machine of two cores
CONSTANT = ("OneRow", "--arrivals", "constant")
USERS = {"/predict", "/predict/batch", "/bento/predict"}
HOSTILE = {
    f"hostile: {act}" for act in ("bad row", "broken JSON", "wrong media type", "huge body", "hang-up", "slow sender")
}


class Stalling:
    """Answers at once, but for one stall: the fiftieth request and all after it wait until it is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seen = 0
        self.until = 0.0
        self.lock = threading.Lock()

    def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/metadata":
            return 200, json.dumps(METADATA).encode()
        if not body:  # it has no metrics
            return 404, b""
        with self.lock:
            self.seen += 1
            if self.seen == 50:
                self.until = time.monotonic() + self.seconds
            until = self.until  # of this request: the one before the stall may not have gone on when it begins
        time.sleep(max(0.0, until - time.monotonic()))
        answer = {"prediction_id": str(uuid.uuid4()), "value": 1.0, "n_features_in": 1, "latency_ms": 0.1}
        return 200, json.dumps({**answer, "model_version": METADATA["model_version"]}).encode()


# --- what is asked with


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_payloads_are_drawn_from_the_reference_sample_and_bring_what_scikit_learn_says(
    models: TrainedModels, name: str
) -> None:
    loaded = models.load(name)
    wanted = Wanted(contract=loaded.contract.model_dump(mode="json"), tag=loaded.tag, seed=3)
    with home_in_use(models.home):
        found, again = payloads.make(wanted), payloads.make(wanted)

    coded = np.vstack([RowReader(loaded.contract, strict=True).read([row]).values for row in found.rows])
    assert found == again
    assert "drawn from the reference sample" in found.origin
    assert np.abs(loaded.engine.predict(coded) - np.array(found.scores)).max() < 1e-3
    assert found.scores is not None
    assert np.isnan(coded).any() == any(feature.may_be_missing for feature in loaded.contract.features)


def test_without_the_model_rows_are_made_up_and_answers_checked_by_shape(empty_home: Path) -> None:
    found = payloads.make(Wanted(contract=METADATA["contract"], tag="nobodys:1.0.0-abcdef"))

    assert found.scores is None
    assert "made up" in found.origin
    assert "status and shape only" in found.origin


@settings(deadline=None, max_examples=200)
@given(contracts())
def test_rows_made_up_keep_any_contract_and_bad_rows_break_it(contract: Contract) -> None:
    reader = RowReader(contract, strict=True)
    good = payloads.made_up(contract, np.random.default_rng(0), 20)

    reader.read([contract.to_values(row) for row in good])
    for bad in payloads.bad_rows(contract, contract.to_values(good[0])):
        with pytest.raises(InvalidRowsError):
            reader.read([bad])


def test_values_of_personal_features_are_made_up(models: TrainedModels) -> None:
    loaded = models.load(CUSTOMERS)
    features = [
        feature.model_copy(update={"personal": True, "quantiles": (1.0,) * 9, "minimum": None, "maximum": None})
        if feature.name == "age"
        else feature
        for feature in loaded.contract.features
    ]
    contract = loaded.contract.model_copy(update={"features": tuple(features)})

    sampled = payloads._sampled(models.directory(CUSTOMERS), contract, np.random.default_rng(0), 50)

    assert set(sampled[:, contract.names.index("age")]) == {1.0}


# --- objectives


def test_the_objectives_of_the_file_are_those_of_the_readers() -> None:
    assert slo.from_file() == slo.from_text("p99=500ms,errors=1%")
    assert slo.from_text("p99.9=2s") == {"p99.9": slo.Latency(99.9, 2000.0)}


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p99=", "p99=500", "p99=1%", "errors=5ms", "errors=101%", "p0=1s", "p100=1s", "speed=1ms", "p99=1s,"],
)
def test_an_objective_that_cannot_be_read_is_named_with_what_was_expected(text: str) -> None:
    with pytest.raises(BadInputError, match=r"^--slo has .*: expected p and a percentile with a time, such as"):
        slo.from_text(text)


@pytest.mark.parametrize("text", ["p99: [", "", "- p99", "p99: 500"])
def test_a_file_of_objectives_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(text)

    with pytest.raises(BadInputError, match="slo.yaml .*expected p and a percentile"):
        slo.from_file(path)


def test_a_verdict_says_which_objective_was_missed_and_by_how_much() -> None:
    measured = slo.Measured(requests=200, failures=5, wrong=2, timed=195, percentile_ms=lambda _: 512.0)

    found = [str(finding) for finding in slo.verdict(slo.from_text("p99=500ms,errors=1%,p50=1s"), measured)]

    assert found == [
        "SLO MISSED: p99 was 512 ms, the objective is 500 ms: 12 ms over it",
        "SLO MISSED: errors were 2.5 % (5 of 200), the objective is 1 %: 1.5 percentage points over it",
        "SLO met: p50 was 512 ms, the objective is 1000 ms",
        "SLO MISSED: 2 answers were wrong, the objective is none",
    ]


def test_a_run_without_requests_keeps_no_objective() -> None:
    measured = slo.Measured(requests=0, failures=0, wrong=0, timed=0, percentile_ms=lambda _: 0.0)

    assert not any(finding.is_met for finding in slo.verdict(slo.from_file(), measured))


# --- users


@pytest.fixture(scope="module")
def all_users(services: dict[str, Service], models: TrainedModels) -> dict[str, Done]:
    """A run of all users against each model, at the same time."""
    started = {
        name: start(models.home, "--host", service.url, "-u42", "-r42", "-t2s", "-s15", "--slo", PATIENT)
        for name, service in services.items()
    }
    return {name: finish(process) for name, process in started.items()}


@pytest.mark.parametrize("name", [BUILT_IN, CUSTOMERS, SPEND])
def test_every_user_finds_every_answer_of_every_model_right(
    all_users: dict[str, Done], models: TrainedModels, name: str
) -> None:
    done = all_users[name]

    assert (done.code, done.failures) == (0, 0), done.log
    assert done.names == USERS | HOSTILE
    assert all(entry["num_requests"] for entry in done.stats)
    assert f"every answer is compared with scikit-learn's, by {models.tag(name)}" in done.log
    assert done.last_line.startswith("SLO met: errors were 0 %") or "SLO met: p99 was" in done.last_line


def test_a_wrong_probability_is_noticed(services: dict[str, Service], models: TrainedModels) -> None:
    with services[BUILT_IN].client() as service:

        def a_little_wrong(path: str, body: bytes) -> tuple[int, bytes]:
            if not body:
                return 200, service.get(path).content
            answer = service.post(path, content=body, headers={"content-type": "application/json"}).json()
            probabilities = answer["probabilities"]
            less = max(probabilities, key=lambda key: probabilities[key])
            for key in probabilities:
                probabilities[key] += -1e-4 if key == less else 1e-4
            return 200, json.dumps(answer).encode()

        with faking(a_little_wrong) as url:
            done = locust(models.home, "--host", url, "-u1", "-t2s", "OneRow", "--slo", f"{PATIENT},errors=100%")

    assert done.code == 1
    assert done.failures == done.requests > 10
    assert "wrong answer: differs from scikit-learn's by more than 1e-06" in done.log
    assert f"SLO MISSED: {done.requests} answers were wrong, the objective is none" in done.log


def test_a_missed_objective_ends_the_run_with_1_and_says_by_how_much(
    services: dict[str, Service], models: TrainedModels
) -> None:
    done = locust(models.home, "--host", services[BUILT_IN].url, "-u2", "-t2s", "ManyRows", "--slo", "p99=1ms")

    missed = re.search(r"SLO MISSED: p99 was (\d+) ms, the objective is 1 ms: (\d+) ms over it", done.log)
    assert done.code == 1
    assert missed
    assert int(missed[2]) == int(missed[1]) - 1
    assert "SLO met: errors were 0 %" in done.log


# --- bad input


def not_ours(path: str, body: bytes) -> tuple[int, bytes]:
    return (200, b"{}") if path.startswith("/json") else (404, b"nothing here")


@pytest.fixture(scope="module")
def refusals(services: dict[str, Service], models: TrainedModels) -> dict[str, Done]:
    """Runs that cannot begin, all of them at the same time."""
    url = services[BUILT_IN].url
    nobody = f"http://127.0.0.1:{free_port()}"
    with faking(not_ours) as another:
        asked = {
            "nobody": ["--host", nobody],
            "nobody, processes": ["--host", nobody, "--processes", "2", *ports()],
            "no host": [],
            "no address": ["--host", "localhost:3000"],
            "not ours": ["--host", another],
            "other model": ["--host", url, "--expect-model", "iris:2.0.0-123456"],
            "slo": ["--host", url, "--slo", "p99=fast"],
            "profile": ["--host", url, "--profile", "storm"],
            "profile and run time": ["--host", url, "--profile", "smoke", "-t", "5s"],
            "rate": ["--host", url, "--arrival-rate", "many"],
        }
        started = {name: start(models.home, *arguments) for name, arguments in asked.items()}
        return {name: finish(process) for name, process in started.items()}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nobody", r"no service answers at http://127\.0\.0\.1:\d+ \(.*refused.*\): start one first, `make serve`"),
        ("nobody, processes", r"no service answers at http://127\.0\.0\.1:\d+ \(.*refused.*\): .*"),
        ("no host", r"--host is missing: expected the address of a service, such as http://127\.0\.0\.1:3000"),
        ("no address", r"--host is 'localhost:3000': expected the address of a service, such as .*"),
        ("not ours", r"what answers at http://127\.0\.0\.1:\d+ is not tabserve: GET /metadata gave 404"),
        ("other model", r"the service at .* serves breast_cancer:.*, not iris:2\.0\.0-123456 as --expect-model says"),
        ("slo", r"--slo has p99=fast: expected p and a percentile with a time, such as p99=500ms .*"),
        ("profile", r"--profile is 'storm', expected one of smoke, steady, steps, spike, soak, peak"),
        ("profile and run time", r"--profile and --run-time both say how long the run takes: give one of them"),
        ("rate", r"--arrival-rate is 'many', expected a number of requests a second above 0"),
    ],
)
def test_bad_input_ends_with_one_sentence(refusals: dict[str, Done], what: str, sentence: str) -> None:
    done = refusals[what]

    assert done.code == 2, done.log
    assert len(re.findall(r"^loadtest: ", done.log, re.MULTILINE)) == 1, done.log
    assert re.search(f"^loadtest: {sentence}$", done.log, re.MULTILINE), done.log


# --- open loop


def test_an_open_loop_keeps_its_rate_where_the_server_stalls_and_counts_the_waiting(tmp_path: Path) -> None:
    with faking(Stalling(1.0)) as url, faking(Stalling(1.0)) as another:
        arguments = ["-t3s", "--slo", "p99=5s"]
        opening = start(tmp_path, "--host", url, *CONSTANT, "--arrival-rate", "100", "-u10", *arguments)
        closed = locust(tmp_path, "--host", another, "OneRow", "-u1", *arguments)
        opened = finish(opening)

    assert (opened.code, closed.code) == (0, 0), opened.log + closed.log
    assert 270 <= opened.requests <= 310
    assert opened.slower_than(100) >= 70  # a hundred fell due within the second, and those at its end waited little
    assert 900 <= max(entry["max_response_time"] for entry in opened.stats) <= 1500
    assert closed.slower_than(500) == 1


def test_what_falls_due_beyond_the_bound_is_a_failure_and_so_is_what_is_never_answered(tmp_path: Path) -> None:
    with faking(Stalling(60.0)) as url:
        arguments = ["--arrival-rate", "100", "-u10", "--max-in-flight", "20", "-t2s", "-s1"]
        done = locust(tmp_path, "--host", url, *CONSTANT, *arguments)

    assert done.code == 1
    assert 170 <= done.requests <= 210
    assert done.failures == done.requests - 49  # those before the stall
    assert re.search(r"^1\d\d .*not sent: 2 of its user were under way", done.log, re.MULTILINE)
    assert re.search(r"^20 .*no answer within 1 s after the end of the run", done.log, re.MULTILINE)


@pytest.mark.alone
def test_a_master_shares_an_open_loop_out_to_its_workers_and_judges_what_they_found(
    services: dict[str, Service], models: TrainedModels
) -> None:
    own_ports = ports()
    workers = [start(models.home, "--worker", *own_ports) for _ in range(2)]
    options = ["--arrival-rate", "60", "-u12", "-t4s", "--slo", "p99=60s,p50=1ms"]
    master = start(
        models.home,
        "--host",
        services[BUILT_IN].url,
        *CONSTANT,
        "--master",
        "--expect-workers",
        "2",
        *own_ports,
        *options,
    )

    done, *others = [finish(process) for process in (master, *workers)]

    assert [other.code for other in others] == [0, 0]
    assert 210 <= done.requests <= 250, done.log
    assert done.failures == 0
    assert done.code == 1
    assert "SLO MISSED: p50 was" in done.log
    assert "SLO met: errors were 0 %" in done.log


@pytest.mark.alone
def test_each_process_does_its_share_of_an_open_loop(services: dict[str, Service], models: TrainedModels) -> None:
    arguments = ["--processes", "2", *ports(), "--arrival-rate", "60", "-u12", "-t4s", "--slo", PATIENT]

    done = locust(models.home, "--host", services[BUILT_IN].url, *CONSTANT, *arguments)

    assert (done.code, done.failures) == (0, 0), done.log
    assert 210 <= done.requests <= 250
    assert "Sending spawn jobs of 12 users at 12.00 spawn rate to 2 ready workers" in done.log


# --- profiles


PROFILES = {
    "smoke": [2],
    "steady": [20],
    "steps": [5, 10, 15, 20, 25, 30],
    "spike": [4, 30, 4],
    "soak": [14],
    "peak": [20, 40, 20],
}


@pytest.fixture(scope="module")
def profiles(services: dict[str, Service], models: TrainedModels) -> dict[str, Done]:
    """A run of each profile, all at the same time, with stages of two seconds."""
    arguments = [*CONSTANT, "--duration-factor", "0.00001", "--arrival-rate", "80", "-u20", "--slo", PATIENT]
    started = {
        name: start(models.home, "--host", services[BUILT_IN].url, "--profile", name, *arguments) for name in PROFILES
    }
    return {name: finish(process) for name, process in started.items()}


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_profile_follows_its_table(profiles: dict[str, Done], name: str) -> None:
    done = profiles[name]
    changes = [int(users) for users in re.findall(r"Shape test updating to (\d+) users", done.log)]

    assert (done.code, done.failures) == (0, 0), done.log
    assert changes == PROFILES[name]
    expected = (
        2 * 4 * sum(PROFILES[name])
    )  # four requests a second by each user, in stages of two seconds or a little more
    assert 0.6 * expected <= done.requests <= 1.8 * expected
