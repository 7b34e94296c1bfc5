"""Who may come in: keys and their file, the scopes of routes, the rate limit; in this process."""

import hmac
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from access_parts import Counted, add_key, answer_to, door_with
from conftest import wait_for
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import _TrustedHosts

from tabserve import cli
from tabserve.access.api_keys import BadKeysError, KeyFile, KeyRing, lasting
from tabserve.access.callers import SCOPES, Caller, counted_address
from tabserve.access.gate import Gate
from tabserve.access.key_store import changing, read_keys, write_keys
from tabserve.access.opening import believed_proxies, check_access, open_gate, say_who_may_ask
from tabserve.access.rate_limit import Buckets, RateLimit
from tabserve.access.reloaded import FileSource, Reloaded
from tabserve.access.worker_buckets import WorkerBuckets, _place, make_bucket_file
from tabserve.settings import BadSettingError, Settings


@pytest.fixture
def observer() -> Counted:
    return Counted()


def gate_of(observer: Counted, path: Path, **settings) -> Gate:
    gate = open_gate(Settings(api_keys_file=str(path), **settings), observer)
    assert gate is not None
    return gate


# --- keys


def test_a_key_opens_what_its_scopes_name_in_either_header(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys.yaml"
    shown = {scope: add_key(path, scope, scope).encode() for scope in SCOPES}
    door = door_with(gate_of(observer, path))
    statuses = {
        (scope, route): answer_to(door, route, (b"x-api-key", key))[0]
        for scope, key in shown.items()
        for route in ("/predict", "/feedback", "/metrics", "/docs.json", "/nothing", "/")
    }

    let_in = {route for route in statuses if statuses[route] not in (401, 403)}
    of_predictions = {"/predict", "/docs.json", "/nothing", "/"}
    assert let_in == {
        *(("predict", route) for route in of_predictions),
        ("feedback", "/feedback"),
        ("metrics", "/metrics"),
        *(("admin", route) for route in (*of_predictions, "/feedback", "/metrics")),
    }
    assert set(statuses.values()) == {403, 405, 200, 204, 404, 307}
    assert answer_to(door, "/metadata", (b"x-api-key", shown["predict"] + b" \t"))[0] == 503
    for header in (b"Bearer ", b"bearer  ", b"BEARER "):
        assert answer_to(door, "/metadata", (b"authorization", header + shown["predict"]))[0] == 503


def test_probes_need_no_key_and_every_other_path_does(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys.yaml"
    add_key(path, "shop", "predict")
    door = door_with(gate_of(observer, path))

    assert [answer_to(door, probe)[0] for probe in ("/health", "/ready", "/livez", "/healthz", "/readyz")] == [
        200,
        503,
        204,
        204,
        204,
    ]
    for guarded in (
        "/",
        "/docs",
        "/static_content/a.css",
        "/health/",
        "//health",
        "/HEALTH",
        "/ready/x",
        "/bento/predict",
    ):
        assert answer_to(door, guarded)[0] == 401, guarded


def test_a_refusal_says_how_to_be_let_in_and_the_same_whatever_was_shown(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys.yaml"
    key = add_key(path, "shop", "predict")
    door = door_with(gate_of(observer, path))
    other_secret = key[:-1] + ("A" if key[-1] != "A" else "B")
    shown = [
        (),
        ((b"x-api-key", b"nonsense"),),
        ((b"x-api-key", other_secret.encode()),),
        ((b"authorization", b"Basic eDp5"),),
    ]

    answers = [answer_to(door, "/predict", *headers) for headers in shown]

    assert {status for status, _, _ in answers} == {401}
    assert len({json.dumps(body) for _, _, body in answers}) == 1
    assert answers[0][1][b"www-authenticate"] == b'Bearer realm="tabserve"'
    assert "X-API-Key" in answers[0][2]["error"]
    assert answers[0][2]["detail"] == []
    assert observer.refused == {"no_key": 2, "unknown_key": 2}


def test_a_missing_scope_is_403_and_an_expired_key_is_told_so_to_its_holder(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys.yaml"
    key = add_key(path, "shop", "predict").encode()
    old = add_key(path, "old", "predict", lasts=timedelta(seconds=-1)).encode()
    door = door_with(gate_of(observer, path))

    status, headers, body = answer_to(door, "/feedback", (b"x-api-key", key))
    assert status == 403
    assert "scope feedback" in body["error"]
    assert b'error="insufficient_scope", scope="feedback"' in headers[b"www-authenticate"]

    status, headers, body = answer_to(door, "/predict", (b"x-api-key", old))
    assert status == 401
    assert "has expired, on 20" in body["error"]
    assert b'error="invalid_token"' in headers[b"www-authenticate"]
    assert observer.refused == {"missing_scope": 1, "expired": 1}


def test_every_key_costs_one_hash_and_one_comparison_in_constant_time_known_or_not(monkeypatch) -> None:
    keys, _, shown = KeyFile().created("shop", ("predict",))
    ring, compared = KeyRing(keys), []
    monkeypatch.setattr(
        hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or one == other
    )

    for wrong in (shown[:-1] + "!", shown.replace(shown[3:15], "0" * 12), "ts_nobody_x"):
        assert ring.caller(wrong.encode()) is None
    assert ring.caller(shown.encode()) is not None

    assert compared == [(32, 32)] * 4


@given(st.binary(max_size=400), st.sampled_from([b"x-api-key", b"authorization"]))
@example(b"ts__", b"x-api-key")
@example(b"ts_0123456789ab_", b"x-api-key")
@example(b"Bearer " + b"\xff" * 9000, b"authorization")
@example(b"Bearer a.b.c", b"authorization")
@example(b"Bearer eyJhbGciOiJub25lIn0.e30.", b"authorization")
def test_whatever_stands_in_the_header_it_is_401(value: bytes, header: bytes) -> None:
    keys, _, _ = KeyFile().created("shop", ("predict",))
    door = door_with(Gate(Counted(), recognize=[KeyRing(keys).caller]))

    assert answer_to(door, "/predict", (header, value))[0] == 401


def test_neither_file_nor_repr_has_a_secret_or_what_it_could_be_tried_against(tmp_path: Path) -> None:
    shown = add_key(tmp_path / "keys.yaml", "shop", "predict")
    secret = shown.split("_", 2)[2]
    (key,) = read_keys(tmp_path / "keys.yaml").keys

    assert secret not in (tmp_path / "keys.yaml").read_text()
    assert key.hash not in repr(key)
    assert key.salt not in repr(key)
    assert (tmp_path / "keys.yaml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "no YAML"),
        ("keys: 3", "keys: "),
        ("- 3", "the file: "),
        ("keys: [{id: secret-thing}]", "keys.0.id: "),
        ("\x00", "no YAML"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused_with_a_sentence_that_repeats_nothing(text: str, expected: str) -> None:
    with pytest.raises(BadKeysError, match=expected) as refused:
        KeyFile.parse(text.encode())

    assert "secret-thing" not in str(refused.value)


def test_json_is_as_good_as_yaml_and_no_id_stands_twice() -> None:
    keys, _, shown = KeyFile().created("shop", ("predict",))
    described = keys.model_dump(mode="json")

    assert KeyRing.parse(json.dumps(described).encode()).caller(shown.encode()) is not None
    with pytest.raises(BadKeysError, match="same id"):
        KeyFile.parse(json.dumps({"keys": described["keys"] * 2}).encode())


def test_of_a_file_that_was_cut_off_no_key_opens_more_than_it_did(tmp_path: Path) -> None:
    """A full disk, or a copy that was read before it was whole."""
    path = tmp_path / "keys.yaml"
    for name in ("first", "second"):
        add_key(path, name, "predict", lasts=timedelta(days=1))
    whole, content = read_keys(path).keys, path.read_bytes()

    n_read = set()
    for end in range(len(content)):
        try:
            read = KeyFile.parse(content[:end]).keys
        except BadKeysError:
            continue
        assert read == whole[: len(read)], content[:end]
        n_read.add(len(read))

    assert n_read <= {1, 2}


@pytest.mark.parametrize("fault", ["a folder", "a pipe", "empty", "a link to nothing"])
def test_a_file_of_keys_that_is_none_ends_the_start_and_changes_nothing_later(
    fault: str, tmp_path: Path, observer: Counted
) -> None:
    path = tmp_path / "keys.yaml"
    shown = add_key(path, "shop", "predict").encode()
    ring = Reloaded(FileSource(path), KeyRing.parse, observer, label="api_keys")

    path.unlink()
    if fault == "a folder":
        path.mkdir()
    elif fault == "a pipe":  # whoever opens it waits for somebody who writes
        os.mkfifo(path)
    elif fault == "empty":
        path.touch()
    else:
        path.symlink_to("nothing")
    ring.look()

    assert ring.now.caller(shown) is not None
    assert observer.stale == {"api_keys": True}
    with pytest.raises(BadSettingError, match="no key can be taken"):
        check_access(Settings(api_keys_file=str(path)), "127.0.0.1")


def test_how_long_a_key_lasts_is_days_or_hours() -> None:
    assert (lasting("90d"), lasting("12h")) == (timedelta(days=90), timedelta(hours=12))
    for text in ("", "90", "0d", "-1d", "1w", "1.5h"):
        with pytest.raises(ValueError, match="90d or 12h"):
            lasting(text)


# --- the file, while the service runs


def test_a_changed_file_counts_at_once_and_one_that_is_broken_or_gone_changes_nothing(
    tmp_path: Path, observer: Counted, caplog
) -> None:
    """Kubernetes mounts a secret as a link to a folder of a new name each time."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = add_key(tmp_path / "one" / "keys", "first", "predict").encode()
    second = add_key(tmp_path / "two" / "keys", "second", "predict").encode()
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "keys").symlink_to("data/keys")
    ring = Reloaded(FileSource(tmp_path / "keys"), KeyRing.parse, observer, label="api_keys")

    def known() -> list[bool]:
        return [ring.now.caller(first) is not None, ring.now.caller(second) is not None]

    assert known() == [True, False]
    (tmp_path / "data.new").symlink_to("two")
    (tmp_path / "data.new").replace(tmp_path / "data")
    ring.look()
    assert known() == [False, True]

    (tmp_path / "two" / "keys").write_text("keys: [broken]")
    for _ in range(3):
        ring.look()
    (tmp_path / "data").unlink()
    for _ in range(3):
        ring.look()
    assert known() == [False, True]
    assert observer.stale == {"api_keys": True}
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1

    (tmp_path / "data").symlink_to("one")
    ring.look()
    assert known() == [True, False]
    assert observer.stale == {"api_keys": False}


def test_a_thread_looks_after_the_file(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys"
    add_key(path, "first", "predict")
    gate = gate_of(observer, path)
    gate.start()
    try:
        second = add_key(path, "second", "predict").encode()
        wait_for(lambda: answer_to(door_with(gate), "/metadata", (b"x-api-key", second))[0] == 503)
    finally:
        gate.close()


def test_two_commands_at_once_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def add(number: int) -> None:
        with changing(path):
            write_keys(path, read_keys(path).created(f"key-{number}", ("predict",))[0])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {key.name for key in read_keys(path).keys} == {f"key-{number}" for number in range(8)}
    assert not list(tmp_path.glob(".keys-*"))


# --- the rate limit


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def of_a_file(folder: Path, limit: str, clock: Callable[[], float] = time.monotonic) -> WorkerBuckets:
    path = folder / "buckets"
    if not path.exists():
        make_bucket_file(path)
    return WorkerBuckets(path, RateLimit.parse(limit), clock=clock)


@pytest.mark.parametrize("are_shared", [False, True], ids=["of one process", "of all workers"])
def test_a_bucket_gives_its_burst_at_once_and_then_its_rate(are_shared: bool, tmp_path: Path) -> None:
    clock = Clock()
    buckets = of_a_file(tmp_path, "10/s:20", clock) if are_shared else Buckets(RateLimit.parse("10/s:20"), clock=clock)

    assert [buckets.take("a") for _ in range(20)] == [0.0] * 20
    assert buckets.take("a") == pytest.approx(0.1, abs=1e-3)
    assert buckets.take("b") == 0.0
    clock.now += 0.1
    assert buckets.take("a") == 0.0
    assert buckets.take("a") > 0
    clock.now += 3600
    assert [buckets.take("a") > 0 for _ in range(21)] == [False] * 20 + [True]
    buckets.give_back("a")
    buckets.give_back("nobody")
    assert [buckets.take("a") > 0 for _ in range(2)] == [False, True]


def test_workers_that_ask_at_once_let_in_as_many_as_one_would(tmp_path: Path) -> None:
    """Often enough that some are between another's reading and writing, had they no lock."""
    of_a_file(tmp_path, "1/h:20000")
    context = multiprocessing.get_context("fork")
    start, let_in = context.Barrier(4), context.SimpleQueue()

    def ask() -> None:
        buckets = of_a_file(tmp_path, "1/h:20000")
        start.wait()
        let_in.put(sum(buckets.take("shop") == 0 for _ in range(10_000)))

    workers = [context.Process(target=ask) for _ in range(4)]
    for worker in workers:
        worker.start()
    counts = [let_in.get() for _ in workers]
    for worker in workers:
        worker.join()

    assert sum(counts) == 20_000


def test_who_was_refused_by_a_worker_is_refused_by_all_however_many_others_come(tmp_path: Path) -> None:
    first, second = of_a_file(tmp_path, "1/h:2"), of_a_file(tmp_path, "1/h:2")
    size = (tmp_path / "buckets").stat().st_size

    assert [first.take("busy"), second.take("busy")] == [0.0, 0.0]
    for number in range(100_000):
        second.take(f"other-{number}")

    assert first.take("busy") > 3000
    assert (tmp_path / "buckets").stat().st_size == size


def test_nobody_chooses_addresses_whose_buckets_forget_each_other(tmp_path: Path) -> None:
    """Who had 9 in a set could ask with them in turn, and find each bucket full again."""
    places: dict[int, list[str]] = {}
    for number in count():
        name = f"2001:db8:0:{number:x}::/64"
        of_set = places.setdefault(_place(b"", name)[1], [])  # as it would be if the hash had no key
        of_set.append(name)
        if len(of_set) == 12:
            break
    buckets = of_a_file(tmp_path, "1/h:2")

    assert sum(buckets.take(name) == 0 for _ in range(20) for name in of_set) == 12 * 2


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.lists(st.floats(0, 2), max_size=200),
)
def test_no_time_has_more_requests_than_the_burst_and_its_share_of_the_rate(
    rate: int, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    buckets = Buckets(RateLimit(rate, 1, burst), clock=clock)
    taken = []
    for pause in pauses:
        clock.now += pause
        wait = buckets.take("a")
        if wait == 0.0:
            taken.append(clock.now)
        else:
            assert 0 < wait <= 1 / rate + 1e-6

    for start in range(len(taken)):
        for end in range(start, len(taken)):
            assert end - start + 1 <= burst + rate * (taken[end] - taken[start]) + 1e-3


def test_the_callers_that_are_remembered_are_bounded_and_who_asks_is_not_forgotten() -> None:
    buckets = Buckets(RateLimit.parse("1/h:1"), most_callers=100)

    assert buckets.take("busy") == 0.0
    for number in range(1000):
        buckets.take(f"other-{number}")
        assert buckets.take("busy") > 0

    assert len(buckets._full_at) == 100


def test_who_asks_too_often_is_429_with_when_to_try_again(tmp_path: Path, observer: Counted) -> None:
    path = tmp_path / "keys.yaml"
    key = add_key(path, "shop", "predict").encode()
    door = door_with(gate_of(observer, path, rate_limit=RateLimit.parse("1/m:3")))

    # Known callers count by their names; strangers by their addresses, so that nobody tries keys without end.
    known = [answer_to(door, "/metadata", (b"x-api-key", key), client=(f"192.0.2.{n}", 1)) for n in range(5)]
    unknown = [answer_to(door, "/metadata", (b"x-api-key", b"%d" % n)) for n in range(5)]

    assert [status for status, _, _ in known] == [503] * 3 + [429] * 2
    assert [status for status, _, _ in unknown] == [401] * 3 + [429] * 2
    _, headers, body = known[-1]
    assert 55 <= int(headers[b"retry-after"]) <= 60
    assert headers[b"ratelimit-policy"] == b'"default";q=3;w=180'
    assert headers[b"ratelimit"] == b'"default";r=0;t=' + headers[b"retry-after"]
    assert "try again in" in body["error"]
    assert observer.refused["too_many"] == 4
    assert [answer_to(door, "/health")[0] for _ in range(5)] == [200] * 5


def test_addresses_count_alone_and_those_of_one_ipv6_network_together(observer: Counted) -> None:
    gate = open_gate(Settings(rate_limit=RateLimit.parse("1/h")), observer)
    assert gate is not None
    door = door_with(gate)
    addresses = [
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.1",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:0:1::1",
        "::ffff:192.0.2.2",
    ]

    assert [answer_to(door, "/metadata", client=(address, 1))[0] for address in addresses] == [
        503,
        503,
        429,
        503,
        429,
        503,
        429,
    ]
    assert answer_to(door, "/metadata", client=None)[0] == 503
    assert counted_address("fe80::1%eth0") == "fe80::/64"


def test_what_is_no_address_is_one_caller_whatever_it_says_and_never_that_of_a_key(
    tmp_path: Path, observer: Counted
) -> None:
    """As a proxy may pass on what a stranger wrote."""
    path = tmp_path / "keys.yaml"
    key = add_key(path, "shop", "predict").encode()
    door = door_with(gate_of(observer, path, rate_limit=RateLimit.parse("1/h:2")))

    made_up = [answer_to(door, "/metadata", client=(said, 0))[0] for said in ("shop", "unknown", "1.2.3", "a:b", "")]

    assert made_up == [401, 401, 429, 429, 429]
    assert answer_to(door, "/metadata", (b"x-api-key", key))[0] == 503


def test_an_expired_key_takes_nothing_from_the_bucket_of_its_name(tmp_path: Path, observer: Counted) -> None:
    """Somebody finds the key that was rotated away."""
    path = tmp_path / "keys.yaml"
    old = add_key(path, "shop", "predict", lasts=timedelta(seconds=-1)).encode()
    new = add_key(path, "shop", "predict").encode()
    door = door_with(gate_of(observer, path, rate_limit=RateLimit.parse("1/h:2")))

    finder = [answer_to(door, "/metadata", (b"x-api-key", old), client=("192.0.2.9", 1))[0] for _ in range(5)]

    assert finder == [401, 401, 429, 429, 429]
    assert [answer_to(door, "/metadata", (b"x-api-key", new))[0] for _ in range(3)] == [503, 503, 429]


@pytest.mark.parametrize("text", ["10", "10/d", "0/s", "10/s:0", "-1/s", "10/s:", "1.5/s", "10/s:20:3", "100001/s"])
def test_a_rate_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadSettingError, match="10/s:20"):
        Settings.from_environment({"TABSERVE_RATE_LIMIT": text})


def test_where_nothing_is_asked_for_there_is_no_gate(observer: Counted) -> None:
    assert open_gate(Settings(), observer) is None


# --- where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "::ffff:127.0.0.1"])
def test_without_keys_it_listens_to_nobody_else_unless_told_so(host: str, tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "shop", "predict")

    with pytest.raises(BadSettingError, match=r"TABSERVE_API_KEYS_FILE.*TABSERVE_ANONYMOUS=true"):
        check_access(Settings(), host)
    check_access(Settings(anonymous=True), host)
    check_access(Settings(api_keys_file=str(tmp_path / "keys")), host)


@pytest.mark.parametrize(
    ("settings", "host", "expected"),
    [
        ({}, "127.0.0.1", ["it answers this machine alone, on 127.0.0.1: there are no keys"]),
        ({"api_keys_file": "keys"}, "127.0.0.1", ["it answers who shows a key or a token, on 127.0.0.1"]),
        (
            {"anonymous": True},
            "0.0.0.0",
            [
                "it answers everybody who reaches 0.0.0.0: TABSERVE_ANONYMOUS is true",
                "anybody may ask as often as he wants, on 0.0.0.0: TABSERVE_RATE_LIMIT is not set",
            ],
        ),
        (
            {"jwks": "keys", "rate_limit": RateLimit.parse("10/s:20")},
            "10.0.0.1",
            ["it answers who shows a key or a token, on 10.0.0.1"],
        ),
    ],
)
def test_it_says_who_may_ask_and_warns_where_nothing_bounds_how_often(
    settings: dict, host: str, expected: list[str], caplog
) -> None:
    caplog.set_level("INFO")

    say_who_may_ask(Settings(**settings), host)

    assert [record.getMessage() for record in caplog.records] == expected


def test_a_proxy_is_believed_also_where_ipv4_comes_by_ipv6() -> None:
    """As it does to who listens on `::`."""
    proxies = _TrustedHosts(believed_proxies(Settings(trusted_proxies=("10.0.0.0/8", "192.0.2.1/32", "fd00::/8"))))

    for address in ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1", "::ffff:192.0.2.1", "fd00::1"):
        assert address in proxies, address
    for address in ("11.1.2.3", "::ffff:11.1.2.3", "::ffff:192.0.2.2", "::1", "127.0.0.1"):
        assert address not in proxies, address
    assert believed_proxies(Settings()) == ""


def test_on_loopback_nothing_is_needed() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1"):
        check_access(Settings(), host)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"api_keys_file": "/nowhere/keys"}, "/nowhere/keys.*cannot be read"),
        ({"api_keys_file": __file__}, "no key can be taken"),
        ({"api_keys_file": "x", "anonymous": True}, "unset one of them"),
        ({"jwks": "/nowhere"}, "TABSERVE_JWT_ISSUER"),
        ({"jwks": "/nowhere", "jwt_issuer": "i", "jwt_audience": "a"}, "cannot be read"),
        ({"jwks": "http://issuer.example/keys", "jwt_issuer": "i", "jwt_audience": "a"}, "https://"),
        ({"jwks": "https://u:hunter2@issuer.example/keys", "jwt_issuer": "i", "jwt_audience": "a"}, "leave them out"),
        ({"jwks": "https://u:hunter2@[::1/keys", "jwt_issuer": "i", "jwt_audience": "a"}, "no address such as"),
        ({"jwks": "https://u:hunter2@h:hunter2/keys", "jwt_issuer": "i", "jwt_audience": "a"}, "no address such as"),
        ({"rate_limit_url": "redis://h"}, "without TABSERVE_RATE_LIMIT"),
        ({"rate_limit_url": "http://u:hunter2@h", "rate_limit": RateLimit(1, 1, 1)}, "redis://"),
        ({"rate_limit_url": "redis://u:hunter2@h:port", "rate_limit": RateLimit(1, 1, 1)}, "redis://"),
    ],
)
def test_what_cannot_be_used_is_a_refusal_to_start_that_shows_no_password(settings: dict, expected: str) -> None:
    with pytest.raises(BadSettingError, match=expected) as refused:
        check_access(Settings(**settings), "127.0.0.1")

    assert "hunter2" not in str(refused.value)


# --- the command


def test_the_command_makes_lists_and_revokes_keys_and_the_audit_log_knows(
    tmp_path: Path, empty_home: Path, capsys, monkeypatch, caplog
) -> None:
    path = tmp_path / "keys.yaml"
    monkeypatch.setenv("TABSERVE_API_KEYS_FILE", str(path))

    assert cli.main(["keys", "create", "shop", "--scopes", "predict,feedback", "--expires", "90d"]) == 0
    shown = capsys.readouterr().out.strip()
    assert cli.main(["keys", "create", "shop", "--scopes", "admin"]) == 0
    capsys.readouterr()
    caller = KeyRing.parse(path.read_bytes()).caller(shown.encode())
    assert caller is not None
    assert (caller.name, caller.scopes) == ("shop", {"predict", "feedback"})
    assert caller.expires == pytest.approx(time.time() + 90 * 86400, abs=60)

    assert cli.main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("shop") == 2
    assert shown.split("_")[1] in listed

    assert cli.main(["keys", "revoke", "shop"]) == 2
    assert "2 keys have the name 'shop'" in caplog.text
    assert cli.main(["keys", "revoke", shown.split("_")[1]]) == 0
    assert KeyRing.parse(path.read_bytes()).caller(shown.encode()) is None
    assert cli.main(["audit", "tail"]) == 0
    audited = capsys.readouterr().out
    assert ["create_key" in line for line in audited.splitlines()[-3:]] == [True, True, False]
    assert "revoke_key" in audited
    for text in (listed, audited, caplog.text, path.read_text()):
        assert shown.split("_", 2)[2] not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create", "shop", "--scopes", "everything"], "everything is no scope"),
        (["create", "10.0.0.1", "--scopes", "predict"], "name: "),
        (["list"], "there is no"),
        (["revoke", "shop"], "there is no"),
    ],
)
def test_what_the_command_cannot_do_it_says(
    arguments: list[str], expected: str, tmp_path: Path, empty_home: Path, caplog
) -> None:
    assert cli.main(["keys", *arguments, "--file", str(tmp_path / "keys")]) == 2
    assert expected in caplog.text
    assert not (tmp_path / "keys").exists()


def test_admin_may_everything() -> None:
    assert all(Caller("root", frozenset({"admin"})).may(scope) for scope in SCOPES)
