"""Requests that nobody sends by accident, as bytes on the wire, each with the statuses that it may be answered with.

A request is answered by what stands there, in this order, and the connection says nothing more; CLOSED is a connection
that ends without an answer. There is no 5 in any of them.
"""

import gzip
import json
import pickle
import zlib
from typing import NamedTuple

from test_http import TUTORIAL_ROW

CLOSED = 0


class Case(NamedTuple):
    name: str
    sent: bytes
    statuses: tuple[int, ...]
    """That it may be answered with."""
    is_bentomls: bool = False
    """Whether BentoML answers, whose errors have another shape."""


ROW = json.dumps(TUTORIAL_ROW).encode()
ONE = b'{"features": %s}' % ROW
MANY = b'{"instances": [%s]}' % ROW
LABEL = b'{"prediction_id": "01a1ff47-2cd4-7152-8ad0-d82ed3f88a73", "label": 0}'
BENTO = b'{"rows": [%s]}' % ROW
POSTS = {"/predict": ONE, "/predict/batch": MANY, "/feedback": LABEL, "/bento/predict": BENTO}
JSON = b"content-type: application/json\r\n"


class Boom:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> tuple:
        import os

        return os._exit, (66,)


PICKLES = [pickle.dumps(Boom(), protocol) for protocol in (0, 2, 5)]


def head(method: str, path: str | bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    path = path.encode() if isinstance(path, str) else path
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"%s %s HTTP/%s\r\nhost: x\r\n%s\r\n" % (method.encode(), path, version, lines)


def post(path: str, body: bytes, headers: bytes = JSON) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (path.encode(), headers, len(body), body)


def in_chunks(path: str, *chunks: bytes, headers: bytes = JSON) -> bytes:
    start = b"POST %s HTTP/1.1\r\nhost: x\r\n%stransfer-encoding: chunked\r\n\r\n" % (path.encode(), headers)
    return start + b"".join(chunks)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


LAST = b"0\r\n\r\n"


def pieces_of(data: bytes, size: int = 4096) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def numbers() -> list[Case]:
    """Spellings of what is no number, or one that no table has, in the place of the first value."""
    refused = {  # JSON as Python's parser takes it: named, and refused by the contract
        422: [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e309",
            "-1e309",
            "9" * 400,
            "-" + "9" * 5000,
            "1e99999",
            "null",
            "true",
        ],
        400: ["nan", "inf", "+Infinity", "-NaN", "+1", ".5", "1.", "01", "-01", "0x1F", "1_000", "1e", "--1", "1,,2"],
    }
    refused[422] += ['"1"', '"NaN"', '""', "[]", "[1]", "{}", '{"a": 1}', "1e39", "1.7976931348623157e308", '"\\u0000"']
    refused[400] += ["undefined", "None", "True", "'1'", "٣", "1 2", "0b1", "1f", "NaN()", "∞", "\x00", "1\x00"]
    accepted = ["1e-400", "-0.0", "0", "1e5", "1E+5", "-0", "0.000000000000000000001", "1" + "0" * 30]
    cases = []
    for status, spellings in {**refused, 200: accepted}.items():
        for spelling in spellings:
            row = ROW.replace(b"17.99", spelling.encode(), 1)
            for path, body in (("/predict", ONE), ("/predict/batch", MANY)):
                cases.append(Case(f"{spelling[:20]!r} to {path}", post(path, body.replace(ROW, row)), (status,)))
    return cases


def texts() -> list[Case]:
    """Bodies that are no JSON, in another encoding, nested, or ambiguous."""
    cases = []
    for path, body in POSTS.items():
        is_bentomls = path == "/bento/predict"
        for name, sent, status in (
            ("empty", b"", 400),
            ("cut off", body[:-1], 400),
            ("with a brace after it", body + b"}", 400),
            ("twice", body + body, 400),
            ("after a byte-order mark", b"\xef\xbb\xbf" + body, 400),
            ("UTF-16", body.decode().encode("utf-16"), 400),
            ("UTF-16 without a mark", body.decode().encode("utf-16-le"), 400),
            ("UTF-32", body.decode().encode("utf-32"), 400),
            ("a byte that is no UTF-8", body.replace(b"{", b"{\xff", 1), 400),
            ("overlong UTF-8", body.replace(b'"', b"\xc0\xa2", 1), 400),
            ("a surrogate as UTF-8", body.replace(b'"', b'"\xed\xa0\x80', 1), 400),
            ("NUL before it", b"\x00" + body, 400),
            ("a comment", b"/* */" + body, 400),
            ("a trailing comma", body[:-1] + b",}", 400),
            ("single quotes", body.replace(b'"', b"'"), 400),
            ("arrays in arrays", b"[" * 100_000, 400),
            ("whole arrays in arrays", b"[" * 100_000 + b"]" * 100_000, 400),
            ("objects in objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
            ("nested below its key", body.split(b":")[0] + b":" + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
            ("its key twice", body[:-1] + b"," + body[1:], 400),
            ("its key twice, once escaped", body[:-1] + b',"\\u%04x' % body[2] + body[3:], 400),
            ("a form", b"features=1", 400),
            ("XML with an entity", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', 400),
            ("one byte too long", b" " * (2**20 + 1 - len(body)) + body, 413),
        ):
            cases.append(Case(f"{name} to {path}", post(path, sent), (status,), is_bentomls))
        for name, sent in (
            ("a number", b"3"),
            ("a text", b'"x"'),
            ("null", b"null"),
            ("an array", b"[]"),
            ("{}", b"{}"),
        ):
            cases.append(Case(f"{name} to {path}", post(path, sent), (400 if is_bentomls else 422,), is_bentomls))
    by_name = b'{"features": {"mean radius": 1, "mean radius": 2}}'
    deep = b'{"features": {"a": %s}}' % (b"[" * 500 + b"]" * 500)
    cases += [
        Case("a feature's name twice", post("/predict", by_name), (400,)),
        Case("a name of 100 KB", post("/predict", b'{"features": {"%s": 1}}' % (b"x" * 100_000)), (422,)),
        Case("half a character as a name", post("/predict", b'{"features": {"\\ud800": 1}}'), (422,)),
        Case("a name as Python has it", post("/predict", b'{"features": {"__class__": 1, "__proto__": {}}}'), (422,)),
        Case("500 levels", post("/predict", deep), (422,)),
        Case("one row too many", post("/predict/batch", b'{"instances": [%s]}' % b",".join([b"[]"] * 513)), (422,)),
        Case("300,000 rows", post("/predict/batch", b'{"instances": [%s]}' % b",".join([b"[]"] * 300_000)), (422,)),
        Case("one label too many", post("/feedback", b'{"labels": [%s]}' % b",".join([LABEL] * 513)), (422,)),
        Case("an id as long as a body", post("/feedback", LABEL.replace(b"01a1", b"0" * 500_000)), (422,)),
        Case("SQL as an id", post("/feedback", LABEL.replace(b"01a1", b"'; DROP TABLE labels; --")), (422,)),
        Case("a path as an id", post("/feedback", LABEL.replace(b"01a1ff47", b"../../etc/passwd")), (422,)),
        Case(
            "one row too many to BentoML",
            post("/bento/predict", b'{"rows": [%s]}' % b",".join([ROW] * 513)),
            (400,),
            True,
        ),
    ]
    return cases


def encodings() -> list[Case]:
    """Compressed bodies, and those that say that they are."""
    bomb = gzip.compress(b"0" * 50_000_000)
    cases = []
    for path, body in POSTS.items():
        gz = gzip.compress(body)
        for name, sent, encoding, status in (
            ("gzip", gz, b"gzip", 200),
            ("gzip in capitals", gz, b"GZip", 200),
            ("a bomb", bomb, b"gzip", 413),
            ("a bomb in a bomb", gzip.compress(bomb), b"gzip", 400),  # what is in it is gzip, and no JSON
            ("gzip cut off", gz[:-4], b"gzip", 400),
            ("gzip with a wrong sum", gz[:-8] + bytes(8), b"gzip", 400),
            ("gzip with more after it", gz + b"{}", b"gzip", 400),
            ("52,000 empty gzips", gzip.compress(b"") * 52_000, b"gzip", 400),
            ("no gzip", body, b"gzip", 400),
            ("deflate", zlib.compress(body), b"deflate", 415),
            ("deflate as gzip", zlib.compress(body), b"gzip", 400),
            ("br", body, b"br", 415),
            ("gzip twice", gzip.compress(gz), b"gzip, gzip", 415),
            ("an encoding of 60 KB", body, b"x" * 60_000, 415),
        ):
            headers = JSON + b"content-encoding: " + encoding + b"\r\n"
            cases.append(Case(f"{name} to {path}", post(path, sent, headers), (status,), path == "/bento/predict"))
        in_pieces = in_chunks(path, *map(chunk, pieces_of(bomb)), LAST, headers=JSON + b"content-encoding: gzip\r\n")
        cases.append(Case(f"a bomb in chunks to {path}", in_pieces, (413,)))
        two = JSON + b"content-encoding: gzip\r\ncontent-encoding: gzip\r\n"
        cases.append(Case(f"two Content-Encodings to {path}", post(path, gz, two), (415,)))
    return cases


def pickles() -> list[Case]:
    """What runs code where it is unpickled, to every route and by every header that BentoML knows."""
    cases = []
    bentomls = b"application/vnd.bentoml+pickle"
    headers = {
        "its own type": b"content-type: " + bentomls,
        "in capitals": b"content-type: " + bentomls.upper(),
        "with a charset": b"content-type: " + bentomls + b"; charset=utf-8",
        "the second type": b"content-type: application/json\r\ncontent-type: " + bentomls,
        "the first type": b"content-type: " + bentomls + b"\r\ncontent-type: application/json",
        "octets": b"content-type: application/octet-stream",
        "python": b"content-type: application/python-pickle",
        "a form": b"content-type: multipart/form-data; boundary=x",
    }
    for path in POSTS:
        for name, header in headers.items():
            cases.append(Case(f"a pickle, {name}, to {path}", post(path, PICKLES[1], header + b"\r\n"), (415,)))
        for number, pickled in enumerate(PICKLES):
            cases.append(Case(f"pickle {number} as JSON to {path}", post(path, pickled), (400,)))
        payload = (
            JSON + b"payload-container: NdarrayContainer\r\npayload-meta: {}\r\nbento-name: x\r\nrunner-name: x\r\n"
        )
        cases.append(Case(f"a runner's headers to {path}", post(path, PICKLES[1], payload), (400,)))
        cases.append(Case(f"no type to {path}", post(path, PICKLES[1], b""), (400,)))
    for path in ("/health", "/metrics", "/docs", "/", "/livez", "/predict/x", "/runner/predict"):
        sent = post(path, PICKLES[1], headers["its own type"] + b"\r\n")
        cases.append(Case(f"a pickle to {path}", sent, (404, 405), path == "/livez"))
    return cases


def smuggling() -> list[Case]:
    """Requests of which two servers in a row may see different ends. None gets a second answer."""
    inner = b"GET /metadata HTTP/1.1\r\nhost: x\r\n\r\n"
    cl, te = b"content-length: %d" % len(ONE), b"transfer-encoding: chunked"
    chunked = chunk(ONE) + LAST
    both = head("POST", "/predict", JSON.strip(), b"content-length: 5", te) + chunked
    return [
        Case("length and chunks", both, (400,)),
        Case("chunks and length", head("POST", "/predict", JSON.strip(), te, b"content-length: 5") + chunked, (400,)),
        Case("length 0 and chunks", head("POST", "/predict", te, b"content-length: 0") + LAST + inner, (400,)),
        Case("two lengths", head("POST", "/predict", b"content-length: 5", b"content-length: 6") + b"xxxxxx", (400,)),
        Case("two equal lengths", head("POST", "/predict", JSON.strip(), cl, cl) + ONE, (400,)),
        Case("a list of lengths", head("POST", "/predict", b"content-length: 5, 5") + b"xxxxx", (400,)),
        Case("a negative length", head("POST", "/predict", b"content-length: -1"), (400,)),
        Case("a length with a plus", head("POST", "/predict", b"content-length: +5") + b"xxxxx", (400,)),
        Case("a length in hexadecimal", head("POST", "/predict", b"content-length: 0x5") + b"xxxxx", (400,)),
        Case("a length beyond 64 bits", head("POST", "/predict", b"content-length: " + b"9" * 30), (400,)),
        Case("an empty length", head("POST", "/predict", b"content-length: "), (400,)),
        Case("a length of a space", head("POST", "/predict", b"content-length: 5 5") + b"xxxxx", (400,)),
        Case("chunked and identity", head("POST", "/predict", te, b"transfer-encoding: identity") + chunked, (400,)),
        Case("identity, then chunked", head("POST", "/predict", b"transfer-encoding: identity, chunked") + LAST, (400,)),
        Case("xchunked", head("POST", "/predict", b"transfer-encoding: xchunked") + chunked, (400,)),
        Case("chunked, then identity", head("POST", "/predict", b"transfer-encoding: chunked, identity") + LAST, (400,)),
        Case("chunked with a tab", head("POST", "/predict", b"transfer-encoding:\tchunked", cl) + chunked, (400,)),
        Case("chunked after a vertical tab", head("POST", "/predict", b"transfer-encoding: \x0bchunked") + chunked, (400,)),
        Case("a space before the colon", head("POST", "/predict", b"transfer-encoding : chunked", cl) + ONE, (400,)),
        Case("a folded header", head("POST", "/predict", b"x: y\r\n transfer-encoding: chunked", cl) + ONE, (400,)),
        Case("chunked in HTTP/1.0", head("POST", "/predict", JSON.strip(), te, cl, version=b"1.0") + chunked, (400,)),
        Case("a chunk's size of g", in_chunks("/predict", b"g\r\nx\r\n"), (400,)),
        Case("a chunk's size with 0x", in_chunks("/predict", b"0x5\r\nxxxxx\r\n", LAST), (400,)),
        Case("a negative chunk", in_chunks("/predict", b"-1\r\nx\r\n", LAST), (400,)),
        Case("a chunk beyond 64 bits", in_chunks("/predict", b"f" * 17 + b"\r\nx\r\n"), (400,)),
        Case("a chunk longer than it says", in_chunks("/predict", b"5\r\nxxxxxxxx\r\n", LAST), (400,)),
        Case("a chunk that ends with a newline", in_chunks("/predict", b"5\nxxxxx\n", LAST), (400,)),
        Case("a chunk that ends with a return", in_chunks("/predict", b"5\r\nxxxxx\rx", LAST), (400,)),
        Case("a chunk with an extension", in_chunks("/predict", chunk(ONE, b";a=b"), LAST), (200,)),
        Case("an extension with a newline", in_chunks("/predict", b"5;a\nx\r\nxxxxx\r\n", LAST), (400,)),
        Case("chunks of a byte", in_chunks("/predict", *(chunk(bytes([byte])) for byte in ONE), LAST), (200,)),
        Case("chunks that are too much", in_chunks("/predict", *[chunk(b" " * 60_000)] * 20, LAST), (413,)),
        Case("chunks without an end, and an error", in_chunks("/predict", chunk(ONE), b"zz\r\n"), (400,)),
        Case("a trailer", in_chunks("/predict", chunk(ONE), b"0\r\na: b\r\n\r\n"), (200,)),
        Case("a length as a trailer", in_chunks("/predict", chunk(ONE), b"0\r\ncontent-length: 3\r\n\r\n"), (400,)),
        Case("a trailer that is none", in_chunks("/predict", chunk(ONE), b"0\r\nbad header\r\n\r\n"), (400,)),
        Case("200 trailers", in_chunks("/predict", chunk(ONE), b"0\r\n", b"a: b\r\n" * 200, b"\r\n"), (200, CLOSED)),
        Case("a body to a GET, with a request in it", head("GET", "/health", b"content-length: %d" % len(inner)) + inner, (200,)),
        Case("a body to a HEAD", head("HEAD", "/health", b"content-length: %d" % len(inner)) + inner, (200,)),
        Case("a length too short", head("POST", "/predict", JSON.strip(), b"content-length: 5") + ONE, (400,)),
        Case("Expect", head("POST", "/predict", JSON.strip(), cl, b"expect: 100-continue") + ONE, (200,)),
        Case("Expect something else", head("POST", "/predict", JSON.strip(), cl, b"expect: 200-ok") + ONE, (200,)),
        Case("an upgrade to HTTP/2", head("GET", "/health", b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA"), (200,)),
        Case("an upgrade to WebSocket", head("GET", "/health", b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="), (200,)),
        Case("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    ]  # fmt: skip


def heads() -> list[Case]:
    """Request lines and headers that are too much, or none."""
    ok = head("GET", "/health")
    return [
        Case("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", (400,)),
        Case("HTTP/0.9", b"GET /health\r\n\r\n", (200,)),
        Case("HTTP/1.0", head("GET", "/health", version=b"1.0"), (200,)),
        Case("HTTP/2.0", head("GET", "/health", version=b"2.0"), (200,)),
        Case("HTTP/9.9", head("GET", "/health", version=b"9.9"), (400,)),
        Case("no HTTP", b"HELO mail\r\n\r\n", (400,)),
        Case("an answer", b"HTTP/1.1 200 OK\r\n\r\n", (400,)),
        Case("newlines alone", ok.replace(b"\r\n", b"\n"), (200, 400)),
        Case("returns alone", ok.replace(b"\r\n", b"\r"), (400,)),
        Case("no host", b"GET /health HTTP/1.1\r\n\r\n", (200,)),
        Case("two hosts", head("GET", "/health", b"host: y"), (200,)),
        Case("a host that is none", b"GET /health HTTP/1.1\r\nhost: a b/c@d#e\r\n\r\n", (200,)),
        Case("a header without a name", head("GET", "/health", b": x"), (400,)),
        Case("a header without a colon", head("GET", "/health", b"x"), (400,)),
        Case("a space before the first header", ok.replace(b"host", b" host"), (400,)),
        Case("NUL in a header", head("GET", "/health", b"x: a\x00b"), (400,)),
        Case("NUL in a name", head("GET", "/health", b"x\x00: a"), (400,)),
        Case("a return in a header", head("GET", "/health", b"x: a\rb"), (400,)),
        Case("ESC in a header", head("GET", "/health", b"x: \x1b[31m"), (200, 400)),
        Case("bytes in a header", head("GET", "/health", b"x: " + bytes(range(128, 256))), (200,)),
        Case("a parenthesis in a name", head("GET", "/health", b"(x): y"), (400,)),
        Case("one header of 70,000 bytes", head("GET", "/health", b"x: " + b"a" * 70_000), (431,)),
        Case("a name of 70,000 bytes", head("GET", "/health", b"x" * 70_000 + b": a"), (431,)),
        Case("a header of 2 MB that never ends", ok[:-2] + b"x: " + b"a" * 2_000_000, (431, CLOSED)),
        Case("101 headers", head("GET", "/health", *[b"x: y"] * 100), (431,)),
        Case("100 headers", head("GET", "/health", *[b"x: y"] * 99), (200,)),
        Case("10,000 headers", head("GET", "/health", *[b"x: y"] * 10_000), (431, CLOSED)),
        Case("a target of 70,000 bytes", head("GET", "/" + "a" * 70_000), (400,)),
        Case("a query of 70,000 bytes", head("GET", "/health?" + "a" * 70_000), (400,)),
        Case("a target of 60,000 bytes", head("GET", "/" + "a" * 60_000), (404,)),
        Case("a media type of 60,000 bytes", post("/predict", ONE, b"content-type: " + b"x" * 60_000 + b"\r\n"), (415,)),
        Case("a trace that is none", post("/predict", ONE, JSON + b"traceparent: ' OR 1=1\r\n"), (200,)),
        Case("a trace of 10,000 bytes", post("/predict", ONE, JSON + b"traceparent: " + b"0" * 10_000 + b"\r\n"), (200,)),
        Case("a forwarded address that is none", head("GET", "/health", b"x-forwarded-for: \xff, ' OR 1=1, ::1"), (200,)),
        Case("a hundred forwarded addresses", head("GET", "/health", b"x-forwarded-for: " + b"1.1.1.1," * 100), (200,)),
        Case("a host to be forwarded to", head("GET", "/docs", b"x-forwarded-host: evil", b"x-forwarded-proto: javascript"), (200,)),
        Case("a range", head("GET", "/metrics", b"range: bytes=0-18446744073709551615,0-,0-,0-"), (200,)),
        Case("a condition", head("GET", "/health", b"if-none-match: *", b"if-modified-since: x"), (200,)),
        Case("another method in a header", post("/health", b"", b"x-http-method-override: GET\r\n"), (405,)),
        Case("another path in a header", head("GET", "/health", b"x-original-url: /metadata", b"x-rewrite-url: /"), (200,)),
        Case("only newlines, then a request", b"\r\n" * 50 + ok, (200,)),
    ]  # fmt: skip


def paths() -> list[Case]:
    """Targets that a server in front may have taken for another one, and paths to files."""
    nothing = [
        "/predict/", "//predict", "/predict//batch", "/./predict", "/x/../predict", "/predict/..;/metadata",
        "/..;/metadata", "/predict;x=y", "/predict%00", "/predict%0d%0aset-cookie:%20x", "/%2e%2e/%2e%2e/etc/passwd",
        "/../../../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/..%5c..%5cwindows%5cwin.ini", "/%252e%252e/metadata",
        "/PREDICT", "/predict%20", "/predict%2Fbatch%2F", "/%ff%fe", "/%c0%ae%c0%ae/", "/%u002e/", "/%zz", "/%",
        "/.env", "/.git/config", "/wp-login.php", "/admin", "/actuator/env", "/server-status", "/debug/pprof/",
        "/__is_ready__", "/bento/predict/", "/bento/../metadata", "/docs.json/", "/runner_map", "/static_contentx/",
        "/docs/../metadata", "/docs/x", "/redoc/../../settings.py", "/api/v1/../../metadata", "/a" * 5000,
    ]  # fmt: skip
    cases = [Case(f"GET {path[:40]}", head("GET", path), (404,)) for path in nothing]
    files = [
        "..",
        "../..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fapp.py",
        "..%5c",
        "%00",
        "/etc/passwd",
        "a" * 3000,
        "%ff",
        "../livez",
    ]
    cases += [Case(f"a file {file[:40]}", head("GET", f"/static_content/{file}"), (404,), True) for file in files]
    cases += [
        Case("a pass-through that is encoded", head("GET", "/%6d%65%74%72%69%63%73"), (200,)),  # /metrics: one path
        Case("a query", head("GET", "/health?a=b&a=%00&%ff=<script>"), (200,)),
        Case("a fragment", head("GET", "/health#x"), (200, 400)),
        Case("absolute form", head("GET", "http://evil.example/health"), (200,)),
        Case("absolute form of nothing", head("GET", "http://evil.example/nothing"), (404,)),
        Case("absolute form of a file", head("GET", "file:///etc/passwd"), (404, 400)),
        Case("absolute form of an address inside", head("GET", "http://169.254.169.254/latest/meta-data/"), (404,)),
        Case("authority form", b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n", (400, 405)),
        Case("authority form with GET", head("GET", "evil.example:443"), (400,)),
        Case("an asterisk", head("OPTIONS", "*"), (404,)),
        Case("no slash", head("GET", "health"), (400,)),
        Case("a space in it", head("GET", "/health /x"), (400,)),
        Case("a tab in it", head("GET", "/health\t/x"), (400,)),
        Case("NUL in it", head("GET", b"/health\x00"), (400,)),
        Case("ESC in it", head("GET", b"/\x1b[31m"), (400,)),
        Case("a byte in it", head("GET", b"/h\xe9alth"), (400, 404)),
        Case("UTF-8 in it", head("GET", "/héalth"), (400, 404)),
        Case("a backslash", head("GET", "/..\\..\\metadata"), (404,)),
        Case("empty", b"GET  HTTP/1.1\r\nhost: x\r\n\r\n", (400,)),
        Case("a question mark alone", head("GET", "?"), (400,)),
        Case("a template", head("GET", "/{{7*7}}${7*7}<%=7*7%>"), (404, 400)),
        Case("a script", head("GET", "/<script>alert(1)</script>"), (404, 400)),
    ]
    return cases


def methods() -> list[Case]:
    ours = {"/predict": "POST", "/feedback": "POST", "/health": "GET", "/metrics": "GET", "/docs": "GET"}
    cases = []
    for path, allowed in ours.items():
        others = {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "LOCK"} - {allowed}
        cases += [Case(f"{name} {path}", head(name, path, b"content-length: 0"), (405,)) for name in sorted(others)]
    for method in ("GET", "PUT", "DELETE", "TRACE", "OPTIONS"):
        sent = head(method, "/bento/predict", b"content-length: 0")
        cases.append(Case(f"{method} /bento/predict", sent, (405,), is_bentomls=True))
    cases += [
        Case(f"the method {name!r}", head(name, "/health"), (400,)) for name in ("get", "FOO", "G" * 5000, "GE T", "")
    ]
    cases.append(Case("HEAD /predict", head("HEAD", "/predict"), (405,)))
    return cases


GROUPS = {group.__name__: group() for group in (numbers, texts, encodings, pickles, smuggling, heads, paths, methods)}
