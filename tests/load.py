"""Asks one address for some seconds from many connections; prints the seconds of each answer as a JSON list.

Ends with 1 where an answer was not 200.
"""

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit


def ask(address: str, body: bytes, until: float, took: list[float], refused: list[int]) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    while time.monotonic() < until:
        started = time.perf_counter()
        connection.request("POST", urlsplit(address).path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            refused.append(response.status)
        took.append(time.perf_counter() - started)


def main(address: str, body: Path, connections: int, seconds: float) -> None:
    took: list[float] = []
    refused: list[int] = []
    until = time.monotonic() + seconds
    arguments = (address, body.read_bytes(), until, took, refused)
    callers = [threading.Thread(target=ask, args=arguments) for _ in range(connections)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    sys.stdout.write(json.dumps(took))
    if refused:
        sys.exit(f"{len(refused)} of {len(took)} answers were not 200, but {sorted(set(refused))}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
