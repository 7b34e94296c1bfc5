"""Tokens of an issuer: which open the service, and what it does while the issuer is away."""

import base64
import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator

import jwt
import pytest
from access_parts import Counted, answer_to, door_with
from conftest import free_port, wait_for
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tabserve.access import reloaded
from tabserve.access.bearer_tokens import BearerTokens, parse_jwks
from tabserve.access.gate import Gate
from tabserve.access.opening import open_gate
from tabserve.access.reloaded import Reloaded
from tabserve.settings import Settings

ISSUER, AUDIENCE = "https://issuer.example", "tabserve"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def described(key, name: str, algorithm: str, **more) -> dict:
    of = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**of.to_jwk(key.public_key(), as_dict=True), "kid": name, "alg": algorithm, "use": "sig", **more}


def jwks(*keys: dict) -> bytes:
    return json.dumps({"keys": keys}).encode()


BOTH = jwks(described(RSA, "r", "RS256"), described(EC, "e", "ES256"))


def token(key=RSA, algorithm: str = "RS256", name: str | None = "r", **claims) -> bytes:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 86_400, "scope": "predict openid", **claims}
    said = {claim: value for claim, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": name} if name else None).encode()


class Fixed:
    """A source that says one thing, and counts who asks for more."""

    name = "fixed"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked = 0

    def read(self) -> bytes:
        return self.content

    def ask(self) -> None:
        self.asked += 1


def tokens_of(source: Fixed) -> tuple[BearerTokens, Reloaded]:
    keys = Reloaded(source, parse_jwks, Counted(), label="jwks")
    return BearerTokens(keys, audience=AUDIENCE, issuer=ISSUER), keys


def test_a_token_of_the_issuer_opens_what_its_scopes_name() -> None:
    tokens, _ = tokens_of(Fixed(BOTH))
    door = door_with(Gate(Counted(), recognize=[tokens.caller]))

    soon = int(time.time()) + 5  # by an issuer whose clock goes before ours
    for shown in (
        token(),
        token(EC, "ES256", "e"),
        token(scope=None, scp=["predict"]),
        token(aud=["x", AUDIENCE]),
        token(nbf=soon, iat=soon),
    ):
        header = (b"authorization", b"Bearer " + shown)
        assert [answer_to(door, path, header)[0] for path in ("/metadata", "/feedback")] == [503, 403]
    caller = tokens.caller(token(sub="al\nice" * 50))
    assert caller is not None
    assert caller.name == "token:" + ("al?ice" * 50)[:64]
    assert caller.scopes == {"predict"}


def public_pem() -> bytes:
    return RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def signed_with_the_public_key() -> bytes:
    """The oldest trick: HS256, whose secret would be the public key, which everybody has."""
    import hashlib
    import hmac

    def part(content: dict) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")

    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "scope": "admin"}
    signed = part({"alg": "HS256", "kid": "r"}) + b"." + part(claims)
    signature = hmac.new(public_pem(), signed, hashlib.sha256).digest()
    return signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


@pytest.mark.parametrize(
    "shown",
    [
        token(OTHER),
        token(algorithm="RS512"),
        token(EC, "ES256", "r"),
        token(RSA, "RS256", "e"),
        token(name=None),
        token(name="unknown"),
        token(exp=None),
        token(exp="soon"),
        token(exp=1e300),
        token(iss="https://other.example"),
        token(iss=None),
        token(aud="other"),
        token(aud=None),
        token(nbf=int(time.time()) + 80_000),
        jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": 9e9}, None, algorithm="none", headers={"kid": "r"}).encode(),
        signed_with_the_public_key(),
        # Not at its end, where the last letter has bits that stand for nothing.
        token()[:-90] + b"AAAA" + token()[-86:],
        token() + b"." * 9000,
        token(pad="x" * 9000),
        b"a.b.c",
        b"\xff\xfe",
        b"",
    ],
)
def test_what_is_no_valid_token_for_us_is_nobodys(shown: bytes) -> None:
    tokens, _ = tokens_of(Fixed(BOTH))

    assert tokens.caller(shown) is None


def test_an_expired_token_is_told_so_also_when_it_expires_while_it_is_remembered(monkeypatch) -> None:
    tokens, _ = tokens_of(Fixed(BOTH))
    door = door_with(Gate(Counted(), recognize=[tokens.caller]))
    header = (b"authorization", b"Bearer " + token())
    old = (b"authorization", b"Bearer " + token(exp=int(time.time()) - 1))

    assert answer_to(door, "/metadata", header)[0] == 503
    assert answer_to(door, "/metadata", old)[0] == 401
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_401)
    status, _, body = answer_to(door, "/metadata", header)
    assert status == 401
    assert "expired" in body["error"]


def test_a_key_that_was_withdrawn_opens_nothing_any_more_and_tokens_are_verified_once() -> None:
    source = Fixed(BOTH)
    tokens, keys = tokens_of(source)
    shown = token()

    assert tokens.caller(shown) is not None
    assert tokens.caller(shown) is tokens.caller(shown)
    source.content = jwks(described(EC, "e", "ES256"))
    keys.look()
    assert tokens.caller(shown) is None
    assert source.asked == 1
    assert tokens.caller(token(EC, "ES256", "e")) is not None
    source.content = b"<html>down for maintenance</html>"
    keys.look()
    assert source.asked == 2  # soon again, though nobody misses a key
    assert tokens.caller(token(EC, "ES256", "e")) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"keys": 3}',
        b'{"keys": [3]}',
        jwks(),
        jwks(described(WEAK_RSA, "w", "RS256")),
        jwks(described(RSA, "r", "RS512")),
        jwks(described(RSA, "r", "RS256", use="enc")),
        jwks({"kty": "oct", "kid": "r", "alg": "HS256", "k": "c2VjcmV0"}),
        jwks(described(ec.generate_private_key(ec.SECP384R1()), "e", "ES256")),
        jwks({"kty": "RSA", "kid": "r", "n": "!", "e": "AQAB"}),
    ],
)
def test_a_jwks_that_can_verify_nothing_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="JWKS|verify"):
        parse_jwks(content)


@contextlib.contextmanager
def issuer(port: int, said: dict) -> Iterator[list[str]]:
    """A real server of a JWKS; what it was asked."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(said["status"])
            self.send_header("location", "/elsewhere")  # of a redirect, which is not followed
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for the end
                for piece in said.get("pieces", ()):
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(0.05)
                self.wfile.write(said["content"])

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def believing(port: int, observer: Counted) -> tuple[Gate, Callable[[bytes], int]]:
    """A gate that takes the tokens of the issuer at a port, and what a token is answered with there."""
    settings = Settings(jwks=f"http://127.0.0.1:{port}/keys", jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    gate = open_gate(settings, observer)
    assert gate is not None
    door = door_with(gate)
    return gate, lambda shown: answer_to(door, "/metadata", (b"authorization", b"Bearer " + shown))[0]


def test_an_issuer_that_says_nothing_usable_too_much_or_too_slowly_changes_nothing(monkeypatch, caplog) -> None:
    seconds = {"GLANCE_SECONDS": 0.02, "RETRY_SECONDS": 0.05, "ASK_AGAIN_SECONDS": 0.1, "FETCH_SECONDS": 0.5}
    for name, value in seconds.items():
        monkeypatch.setattr(reloaded, name, value)
    port, observer = free_port(), Counted()
    gate, status = believing(port, observer)

    good = {"status": 200, "content": BOTH, "pieces": []}
    faults = {
        "it is no JWKS": {"content": b"<html>down for maintenance</html>"},
        "no key in it can verify": {"content": jwks()},
        "does not end within 1048576 bytes": {"content": b" " * 2**21 + BOTH},
        "bytes and 0.5 s": {"pieces": [b" "] * 40},
        "it answered 302": {"status": 302},
    }
    said = dict(good)
    shown = token()
    gate.start()
    try:
        with issuer(port, said) as asked:
            wait_for(lambda: status(shown) == 503)
            for sentence, fault in faults.items():
                caplog.clear()
                said.update(fault)
                wait_for(lambda: status(token(name="made-up")) == 401 and observer.stale["jwks"])
                assert sentence in caplog.text
                assert status(shown) == 503
                said.update(good)
                wait_for(lambda: not observer.stale["jwks"])  # without anybody asking
            assert set(asked) == {"/keys"}
    finally:
        gate.close()


def test_an_issuer_that_is_away_is_asked_again_and_what_it_said_holds_meanwhile(monkeypatch, caplog) -> None:
    for name, seconds in (("GLANCE_SECONDS", 0.02), ("RETRY_SECONDS", 0.05), ("ASK_AGAIN_SECONDS", 0.2)):
        monkeypatch.setattr(reloaded, name, seconds)
    port, observer = free_port(), Counted()
    gate, status = believing(port, observer)

    first, second = token(), token(EC, "ES256", "e")
    said = {"status": 200, "content": jwks(described(RSA, "r", "RS256"))}
    gate.start()
    try:
        wait_for(lambda: observer.stale == {"jwks": True})
        assert status(first) == 401  # nobody knows its key yet
        with issuer(port, said) as asked:
            wait_for(lambda: status(first) == 503)
            assert observer.stale == {"jwks": False}
            said["content"] = BOTH  # the issuer has a new key: the first token of it has it looked up
            began, before = time.monotonic(), len(asked)
            wait_for(lambda: status(second) == 503)
            for _ in range(20):
                status(token(name="made-up"))
                time.sleep(0.01)
            took = time.monotonic() - began
            assert len(asked) - before <= took / 0.2 + 1  # however many ask for keys that do not exist
            said["status"] = 500
            status(token(name="made-up"))
            wait_for(lambda: observer.stale == {"jwks": True})
        assert (status(first), status(second)) == (503, 503)
    finally:
        gate.close()
    # Twice it went away, and each time that was said once.
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
