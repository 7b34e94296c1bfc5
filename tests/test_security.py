"""One service as it would be exposed: over TLS, with secrets in its settings, and browsers that ask."""

import datetime as dt
import ipaddress
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import jwt
import pytest
from conftest import CUSTOMERS, ROOT, Service, TrainedModels, environment, start_service, stop, train, wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tables import PLANS, customers
from test_http import CUSTOMER, TUTORIAL_ROW

from tabserve.access.api_keys import KeyFile
from tabserve.contract import Contract
from tabserve.prediction_log import CannotKeepError
from tabserve.prediction_log.opening import open_prediction_log, usable_url
from tabserve.settings import BadSettingError, Settings
from tabserve.telemetry import Telemetry
from tabserve.tls import check_tls
from tabserve.validation import HIDDEN, InvalidRowsError, RowReader

PAGE = "https://page.example"
PERSONAL = "people"  # a model of customers whose age and income are personal
AGE, INCOME = 47110815, 47110816.25  # of nobody in the table
PERSON = {**CUSTOMER, "age": AGE, "income": INCOME}
SECRETS = {
    "the password of the database": "pw-J7sQxk2V",
    "the key of personal features": "k3y-fb2c41d09e8a7766554433221100aabb",
    "the token of the receiver of traces": "t0ken-5f0c9a",
    "the password of TLS": "tlspw-90cc1d",
    "the password of Redis": "r3dis-41aa07",
    "what a stranger tried": "ts_0123456789ab_gu3ss-7d1e",
}


@dataclass(frozen=True)
class Exposed:
    service: Service
    home: Path
    certificate: Path
    key: str
    """Opens all."""
    secrets: dict[str, str]
    """What must be in no output, by what it is."""
    said: str
    """By `tabserve keys`, and in the audit log that knows of it."""

    def client(self, shown: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.service.url,
            verify=ssl.create_default_context(cafile=str(self.certificate)),
            timeout=30,
            headers={"Authorization": f"Bearer {shown or self.key}"},
        )


def say_keys(home: Path, file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tabserve", "keys", *arguments, "--file", str(file)]
    settings = {"TABSERVE_LOG_LEVEL": "DEBUG"}
    return subprocess.run(command, cwd=ROOT, env=environment(home, **settings), capture_output=True, text=True)


def write_certificate(folder: Path, password: str | None = None) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    hidden = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(*form, hidden))
    return paths


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    """Its database, its Redis and its receiver of traces are away, and its audit log cannot be written."""
    folder = tmp_path_factory.mktemp("exposed")
    home = folder / "home"
    rules = "features: {age: {personal: true, min: 0, max: 90000000}, income: {personal: true}}"
    (folder / "rules.yaml").write_text(rules)
    customers(200).drop(columns=["spend", "since", "customer"]).to_csv(folder / "people.csv", index=False)
    table = ("--data", str(folder / "people.csv"), "--target", "plan", "--rules", str(folder / "rules.yaml"))
    trained = train(home, *table)
    assert trained.returncode == 0, trained.stderr
    keys = folder / "keys.yaml"
    shown = say_keys(home, keys, "create", "shop", "--scopes", "admin").stdout.strip()
    listed = say_keys(home, keys, "list")
    said = listed.stdout + listed.stderr + (home / "audit.jsonl").read_text()
    (home / "audit.jsonl").rename(home / "audit-before.jsonl")
    (home / "audit.jsonl").mkdir()
    issuer = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    # An issuer's mistake: its private key is in it too.
    private = {**jwt.algorithms.RSAAlgorithm.to_jwk(issuer, as_dict=True), "kid": "private"}
    public = {**jwt.algorithms.RSAAlgorithm.to_jwk(issuer.public_key(), as_dict=True), "kid": "public"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [private, public]}))
    claims = {"iss": "issuer", "aud": "tabserve", "sub": "alice", "scope": "predict", "exp": int(time.time()) + 600}
    (kept,) = KeyFile.parse(keys.read_bytes()).keys
    secrets = {
        **SECRETS,
        "a key": shown.split("_", 2)[2],
        "a key's salt": kept.salt,
        "a key's hash": kept.hash,
        "a token": jwt.encode(claims, issuer, algorithm="RS256", headers={"kid": "public"}),
        "the private key of an issuer": private["d"],
    }
    key_file = folder / "personal.key"
    key_file.write_text(SECRETS["the key of personal features"])
    certificate, key = write_certificate(folder, SECRETS["the password of TLS"])
    tls = {
        "enabled": True,
        "certfile": str(certificate),
        "keyfile": str(key),
        "keyfile_password": SECRETS["the password of TLS"],
    }
    config = folder / "configuration.yaml"
    config.write_text((ROOT / "configuration.yaml").read_text() + f"    ssl: {json.dumps(tls)}\n")
    settings = {
        "BENTOML_CONFIG": str(config),
        "TABSERVE_MODEL": PERSONAL,
        "TABSERVE_API_KEYS_FILE": str(keys),
        "TABSERVE_JWKS": str(folder / "jwks.json"),
        "TABSERVE_JWT_ISSUER": "issuer",
        "TABSERVE_JWT_AUDIENCE": "tabserve",
        "TABSERVE_RATE_LIMIT": "1000/s",
        "TABSERVE_RATE_LIMIT_URL": f"redis://:{SECRETS['the password of Redis']}@127.0.0.1:9/0",
        "TABSERVE_LOG_SUCCESS_SHARE": "1",
        "TABSERVE_LOG_LEVEL": "DEBUG",
        "TABSERVE_LOG_URL": f"postgresql://somebody:{SECRETS['the password of the database']}@127.0.0.1:9/nothing",
        "TABSERVE_LOG_KEY_FILE": str(key_file),
        "TABSERVE_CORS_ORIGINS": PAGE,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRETS['the token of the receiver of traces']}",
        "OTEL_TRACES_SAMPLER": "always_on",
    }
    started = start_service(home, folder / "log", **settings)
    service = replace(started, url=started.url.replace("http:", "https:"))
    found = Exposed(service, home, certificate, shown, secrets, said)

    def is_ready() -> bool:
        assert started.process.poll() is None, started.log
        try:
            with found.client() as client:
                return client.get("/ready").is_success
        except httpx.TransportError:
            return False

    try:
        wait_for(is_ready, 60)
        yield found
    finally:
        stop(started)


# --- TLS


def test_https_is_answered_and_plain_http_is_not(exposed: Exposed) -> None:
    with exposed.client() as client:
        assert client.post("/predict", json={"features": CUSTOMER}).json()["label"] in PLANS
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{exposed.service.url}/health")  # nobody signed this certificate
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(exposed.service.url.replace("https:", "http:") + "/health")


@pytest.mark.parametrize(
    ("version", "ciphers", "is_answered"),
    [
        (ssl.TLSVersion.TLSv1_3, None, True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AES:!AESGCM:!AESCCM", False),  # CBC, with SHA-1 and SHA-256
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_is_of_today(exposed: Exposed, version: ssl.TLSVersion, ciphers: str | None, is_answered: bool) -> None:
    context = ssl.create_default_context(cafile=str(exposed.certificate))
    context.minimum_version, context.maximum_version = version, version
    if ciphers:
        context.set_ciphers(ciphers)

    with httpx.Client(verify=context) as client:
        if is_answered:
            assert client.get(f"{exposed.service.url}/health").is_success
            return
        with pytest.raises(httpx.ConnectError):
            client.get(f"{exposed.service.url}/health")


@pytest.mark.parametrize("missing", ["certificate.pem", "key.pem"])
def test_files_of_tls_that_cannot_be_used_are_named(tmp_path: Path, missing: str) -> None:
    certificate, key = write_certificate(tmp_path)
    check_tls(None, None)
    check_tls(str(certificate), str(key))
    (tmp_path / missing).unlink()

    with pytest.raises(BadSettingError, match=r"cannot be used for TLS \(No such file or directory\)"):
        check_tls(str(certificate), str(key))


def test_a_key_of_another_certificate_a_wrong_password_and_no_certificate_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, key = write_certificate(tmp_path, "right")
    _, other = write_certificate(tmp_path / "other")

    for keyfile, password in ((other, None), (key, None), (key, "wrong"), (certificate, None)):
        with pytest.raises(BadSettingError, match="expected two PEM files that belong together"):
            check_tls(str(certificate), str(keyfile), password)
    with pytest.raises(BadSettingError, match="no certificate"):
        check_tls(None, str(key))


def test_a_missing_file_ends_the_start_with_a_sentence(models: TrainedModels, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bentoml", "serve", "--port", "0", "--ssl-certfile", str(tmp_path / "none.pem")]

    done = subprocess.run(command, cwd=ROOT, env=environment(models.home), capture_output=True, text=True, timeout=60)

    assert done.returncode != 0
    assert f"tabserve does not start: the certificate {tmp_path / 'none.pem'}" in done.stderr + done.stdout


# --- browsers


def test_every_answer_has_the_headers_that_a_browser_obeys(exposed: Exposed) -> None:
    with exposed.client() as client:
        answers = {path: client.get(path) for path in ("/health", "/predict", "/nothing", "/docs", "/redoc", "/livez")}
        answers["/bento/predict"] = client.post("/bento/predict", json={})

    for path, answer in answers.items():
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert not any(character.isdigit() for character in answer.headers.get("server", "")), path
        assert "access-control-allow-origin" not in answer.headers, path
    for path in ("/health", "/predict", "/nothing"):
        assert answers[path].headers["cache-control"] == "no-store"
    for path in ("/docs", "/redoc"):
        assert "frame-ancestors 'none'" in answers[path].headers["content-security-policy"]
        assert answers[path].headers["referrer-policy"] == "no-referrer"


def test_only_a_page_that_was_named_may_ask(exposed: Exposed) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-api-key"}
    with exposed.client() as client:
        allowed = client.options("/predict", headers={"origin": PAGE, **asks})
        refused = client.options("/predict", headers={"origin": "https://evil.example", **asks})
        answer = client.post("/predict", json={"features": CUSTOMER}, headers={"origin": PAGE})
        evil = client.post("/predict", json={"features": CUSTOMER}, headers={"origin": PAGE + ".evil.example"})

    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
    assert refused.status_code == 400
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-origin" not in evil.headers


@pytest.mark.parametrize("origins", ["*", "page.example", "https://page.example/path", "https://*.example", "null"])
def test_what_is_no_origin_is_refused_at_the_start(origins: str) -> None:
    with pytest.raises(BadSettingError, match=r"^TABSERVE_CORS_ORIGINS is "):
        Settings.from_environment({"TABSERVE_CORS_ORIGINS": origins})


def test_no_page_may_ask_where_none_was_named(built_in: httpx.Client) -> None:
    answer = built_in.post("/predict", json={"features": TUTORIAL_ROW}, headers={"origin": PAGE})

    assert answer.is_success
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert built_in.options("/predict", headers={"origin": PAGE}).status_code == 405


# --- secrets


def test_no_secret_is_in_any_output_whatever_goes_wrong(exposed: Exposed) -> None:
    pages = ("/metadata", "/metrics", "/openapi.json", "/docs.json", "/health")
    said: list[str] = []
    for shown in (exposed.key, exposed.secrets["a token"], exposed.secrets["what a stranger tried"]):
        with exposed.client(shown) as client:
            answers = [client.get(path) for path in pages]
            for body in ({"features": ["x"]}, {"features": PERSON}, {"features": {"a": 1}}, {}, []):
                answers += [client.post(path, json=body) for path in ("/predict", "/feedback", "/bento/predict")]
            answers.append(client.post("/predict", content=b"\xff", headers={"content-type": "text/plain"}))
            said += [f"{answer.headers} {answer.text}" for answer in answers]
    with exposed.client() as client:
        # They have been tried, and the log says that they are away.
        wait_for(lambda: "TABSERVE_LOG_URL" in exposed.service.log or "postgresql" in exposed.service.log)
        wait_for(lambda: "Redis cannot be asked" in exposed.service.log)
        wait_for(lambda: "refusals are not recorded" in exposed.service.log)
        wait_for(lambda: 'tabserve_dropped_spans_total{reason="' in client.get("/metrics").text)
        said.append(client.get("/metrics").text)

    output = exposed.service.log + exposed.said + "".join(said)
    assert '"status":422' in output
    assert 'tabserve_refused_access_total{reason="unknown_key"} 0.0' not in said[-1]
    assert '"who":"token:alice"' in output
    assert '"action": "create_key"' in output
    assert "nobody who is refused is recorded" in output  # a home that cannot be written stops nobody from asking
    for what, secret in exposed.secrets.items():
        assert secret not in output, what


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{}@host:port/db",
        "postgresql://u:{}@host/db?nonsense=1",
        "postgresql://u:{}@[::1/db",
        "postgresql:u:{}@host/db",
        "s3://key:{}@bucket/prefix",
        "s3://{}@/",
        "mysql://u:{}@host/db",
        "file://u:{}@host/folder",
        "https://u:{}@host/",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(url: str, tmp_path: Path, caplog) -> None:
    secret = SECRETS["the password of the database"]
    settings = Settings(log_url=url.format(secret))

    with pytest.raises(CannotKeepError) as refused:
        open_prediction_log(
            replace(settings, log_url=usable_url(settings, tmp_path)), tmp_path, Telemetry().of_prediction_log()
        )

    assert secret not in str(refused.value) + caplog.text + repr(settings)


# --- personal features


def test_a_personal_value_is_in_no_line_and_no_error_of_the_service(exposed: Exposed) -> None:
    """However wrong the row that it came in; the log says all that it can, at level DEBUG."""
    in_order = [AGE, INCOME, "Oslo", True, 3]
    rows = [
        PERSON,
        in_order,
        [*in_order, 1],
        in_order[:-1],
        {**PERSON, "age": str(AGE)},
        {**PERSON, "age": [AGE]},
        {**PERSON, "age": AGE + 0.5},
        {**PERSON, "age": 2 * AGE},
        {**PERSON, "income": f"{INCOME} NOK"},
        {**PERSON, "city": "Utopia"},
        {"features": PERSON, "age": AGE},
        ",".join(map(str, in_order)),
        AGE,
        [in_order],
    ]
    asked = [("/predict", {"features": row}) for row in rows]
    asked += [("/predict/batch", {"instances": [row, CUSTOMER]}) for row in rows]
    asked += [("/bento/predict", {"rows": [row, CUSTOMER]}) for row in rows]
    asked += [(path, row) for path in ("/predict", "/predict/batch", "/bento/predict", "/feedback") for row in rows]

    with exposed.client() as client:
        answers = [client.post(path, json=body) for path, body in asked]

    assert {answer.status_code for answer in answers} == {200, 400, 422}
    for (path, body), answer in zip(asked, answers, strict=True):
        assert not [value for value in (AGE, 2 * AGE, INCOME) if str(value) in answer.text], (path, body, answer.text)
    lines = exposed.service.log.splitlines()
    assert len([line for line in lines if '"status":422' in line]) > 2 * len(rows)
    assert not [line for line in lines if str(AGE) in line or str(INCOME) in line]


def test_a_personal_value_is_in_no_error_and_no_warning(models: TrainedModels) -> None:
    contract = models.load(CUSTOMERS).contract
    hidden = contract.model_copy(
        update={"features": tuple(feature.model_copy(update={"personal": True}) for feature in contract.features)}
    )
    reader = RowReader(Contract.model_validate(hidden.model_dump()))

    for name, value in (("city", "Utopia-4711"), ("age", "4711"), ("age", 4711.5), ("member", 4711), ("income", 1e300)):
        with pytest.raises(InvalidRowsError) as refused:
            reader.read([{**CUSTOMER, name: value}])
        assert "4711" not in str(refused.value) + json.dumps([one.as_detail() for one in refused.value.violations])
        assert refused.value.violations[0].got == HIDDEN
    (warning,) = reader.read([{**CUSTOMER, "age": 4711}]).warnings[0]
    assert "4711" not in json.dumps(warning.as_detail())
    with pytest.raises(InvalidRowsError, match="got null"):  # that nothing came is nobody's secret
        reader.read([{**CUSTOMER, "age": None}])
