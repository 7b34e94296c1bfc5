"""The traffic of the demo: rows that no model was fitted on, ordinary and shifted, and what came true of them."""

import time
from typing import Any

import httpx
import numpy as np

from monitoring.demo.programs import WINDOW_SECONDS, say
from monitoring.soundness.populations import built_in

WINDOWS_OF_ORDINARY_ROWS, WINDOWS_OF_SHIFTED_ROWS = 2, 3
ROWS_A_REQUEST, REQUESTS_A_SECOND = 20, 3  # 900 rows a window, of which 500 are enough to judge
SHIFTED = {"worst texture": 1.1, "mean smoothness": 0.9}  # by so many standard deviations


def send_traffic(service: str, started: float) -> None:
    """Windows of ordinary rows, then of shifted ones; the label of each row follows it after two windows."""
    population, random = built_in(), np.random.default_rng(0)
    client = httpx.Client(base_url=service, timeout=30)
    names = population.contract.names
    deviations = population.draw(random, 4000)[0].std(axis=0)
    shift = np.zeros(len(names))
    waiting: list[tuple[float, dict[str, object]]] = []
    say(started, f"ordinary rows, {ROWS_A_REQUEST * REQUESTS_A_SECOND} a second")
    start = time.monotonic()
    changes_at = start + WINDOW_SECONDS * (WINDOWS_OF_ORDINARY_ROWS + 1)  # the first window may be cut
    until = changes_at + WINDOW_SECONDS * WINDOWS_OF_SHIFTED_ROWS
    while (now := time.monotonic()) < until:
        if now > changes_at and not shift.any():
            for name, by in SHIFTED.items():
                shift[names.index(name)] = by * deviations[names.index(name)]
            say(started, f"the same, but {' and '.join(SHIFTED)} have shifted")
        rows, truth = population.draw(random, ROWS_A_REQUEST)
        rows = np.abs(rows) + shift  # the noise makes a few of the areas negative
        said = post(client, "/predict/batch", {"instances": [{"features": row} for row in rows.tolist()]})
        for prediction, label in zip(said["predictions"], truth.tolist(), strict=True):
            waiting.append((now, {"prediction_id": prediction["prediction_id"], "label": label}))
        due = [label for came, label in waiting if now - came > 2 * WINDOW_SECONDS]
        if len(due) >= 300:
            post(client, "/feedback", {"labels": due[:512]})
            waiting = waiting[len(due[:512]) :]
        time.sleep(max(0.0, now + 1 / REQUESTS_A_SECOND - time.monotonic()))
    labels = [label for _, label in waiting]
    for first in range(0, len(labels), 512):
        post(client, "/feedback", {"labels": labels[first : first + 512]})
    say(started, "all labels have come")


def post(client: httpx.Client, path: str, body: dict[str, object]) -> Any:
    answer = client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()
