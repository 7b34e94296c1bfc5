"""What each candidate answers to rows that are none, and what one such row does to those who ask at the same time.

Speed is no use where a caller's typing error is a 500 that wakes somebody at night, or sinks the batch that it is in.
"""

import argparse
import http.client
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import uvloop

from loadtest import pages
from loadtest.benchmark import candidates, models, report
from loadtest.benchmark.__main__ import DOCUMENT, say, serving
from loadtest.benchmark.candidates import Endpoint
from loadtest.benchmark.side_by_side import Running, wait_until_it_answers

COMPARED = (candidates.TABSERVE, candidates.PLAIN, candidates.CAREFUL, candidates.QUICKSTART)
CALLERS = 32  # at the same moment, one of them with a bad row
BURSTS = 20
TIMEOUT_SECONDS = 20.0

Row = list[float]
BodyOf = Callable[[Endpoint, Row], bytes]


def _with_first(value: object) -> BodyOf:
    """The body of a row with something else in the place of its first value, as it stands in JSON."""
    mark = 123456.0
    text = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return lambda endpoint, row: msgspec.json.encode(endpoint.body([[mark, *row[1:]]])).replace(b"123456.0", text, 1)


def _too_short(endpoint: Endpoint, row: Row) -> bytes:
    return msgspec.json.encode(endpoint.body([row[:-1]]))


BAD: Mapping[str, BodyOf] = {
    "a value too few": _too_short,
    "`null`, where no value may be missing": _with_first(None),
    "a text": _with_first("large"),
    'a number as a text, `"17.99"`': _with_first("17.99"),
    "`true`": _with_first(value=True),
    "`NaN`, which is no JSON": _with_first(b"NaN"),
    "`1e999`": _with_first(b"1e999"),
    "no row, `{}`": lambda _endpoint, _row: b"{}",
    "no JSON": lambda _endpoint, _row: b'{"features": [1,',
}


def asked(port: int, path: str, body: bytes) -> int:
    """The status of an answer; 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def answers_to_bad_rows(port: int, endpoint: Endpoint, row: Row) -> list[int]:
    """The status of each kind of bad row, in the order of `BAD`."""
    return [asked(port, endpoint.path, body_of(endpoint, row)) for body_of in BAD.values()]


def lost_beside_a_bad_row(port: int, endpoint: Endpoint, row: Row) -> int:
    """How many good rows were not answered that were asked at the same moment as one that is a value too short."""
    good, bad = msgspec.json.encode(endpoint.body([row])), _too_short(endpoint, row)
    at_once = threading.Barrier(CALLERS)

    def ask(number: int) -> bool:
        at_once.wait(TIMEOUT_SECONDS)
        status = asked(port, endpoint.path, good if number else bad)
        return bool(number) and status != 200

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(sum(pool.map(ask, range(CALLERS))) for _ in range(BURSTS))


def told(status: int) -> str:
    """A cell of the table: only 4xx tells a caller that the fault is his."""
    if 400 <= status < 500:
        return str(status)
    return "**answered**" if status == 200 else f"**{status or 'no answer'}**"


def table(names: Sequence[str], answers: Sequence[Sequence[int]], lost: Sequence[int]) -> str:
    """A line for each kind of bad row, a column a candidate.

    Args:
        answers: of each candidate, the statuses in the order of `BAD`.
        lost: of each candidate, good rows that were not answered.
    """
    n_good = BURSTS * (CALLERS - 1)
    lines = [f"| asked | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for what, *statuses in zip(BAD, *answers, strict=True):
        lines.append(f"| {what} | {' | '.join(map(told, statuses))} |")
    cells = " | ".join(f"**{n:,} of {n_good:,}**" if n else f"0 of {n_good:,}" for n in lost)
    lines.append(f"| good rows lost that came at the same moment as one bad row ({CALLERS} callers) | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Asks all candidates, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.benchmark.basics", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    arguments = parser.parse_args()
    answers, lost = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tabserve-basics-")))
        model = models.train(folder / "built-in")
        models.save_for_quickstart(model)
        row = model.rows[0].tolist()
        for candidate in COMPARED:
            with serving(folder, candidate, model) as server:
                uvloop.run(wait_until_it_answers(server, Running(candidate, server, model).requests()))
                answers.append(answers_to_bad_rows(server.port, candidate.one_row, row))
                lost.append(lost_beside_a_bad_row(server.port, candidate.one_row, row))
    found = table([candidate.name for candidate in COMPARED], answers, lost)
    say(found)
    if arguments.write:
        pages.replace_section(DOCUMENT, "basics", f"{report.machine()}\n\n{found}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
