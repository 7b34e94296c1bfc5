"""What a load test may be told on the command line, beside Locust's own options, checked."""

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locust.argument_parser import LocustArgumentParser

from loadtest import slo
from loadtest.errors import BadInputError
from loadtest.profiles import EXPECTED_PEAK_RATE, PROFILES, Stage, stages_of
from loadtest.shape import MOST_SPAWNED_PER_SECOND
from tabserve.settings import Settings

USERS = 100  # sources of arrivals of an open loop, where --users does not say; a hundredth of the load is one of them
SPREADS = ("poisson", "constant")
RESULTS = Path(__file__).parent / "results"
RUNS_PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def add_to(parser: LocustArgumentParser) -> None:
    """Adds ours. Their values are texts: the web page would give texts anyway, and one place checks them all."""
    parser.add_argument_group(
        "tabserve",
        f"Locust's own --profile chooses a load profile here: {', '.join(PROFILES)}. With one, or with "
        "--arrival-rate, the loop is open: each user is a source of arrivals, whatever the answers do.",
    )
    parser.add_argument(
        "--arrival-rate",
        metavar="R",
        help="Requests a second over all users and processes, in an open loop. With --profile it is the expected peak, "
        f"of which the profile takes shares (default there: {EXPECTED_PEAK_RATE:g}).",
    )
    parser.add_argument(
        "--arrivals", default="poisson", help="Instants of an open loop: poisson (default) or constant."
    )
    parser.add_argument(
        "--max-in-flight",
        metavar="N",
        default="1000",
        help="Requests of an open loop that may be under way; one that is due beyond them fails (default: 1000).",
    )
    parser.add_argument("--duration-factor", metavar="F", default="1", help="How many times as long as a profile says.")
    parser.add_argument(
        "--slo", metavar="p99=500ms,errors=1%", help="Objectives beside and instead of those in loadtest/slo.yaml."
    )
    parser.add_argument("--expect-model", metavar="name:version", help="End where the service serves another model.")
    parser.add_argument(
        "--model-may-change", action="store_true", help="Answers of another model are right too: a rollout is meant."
    )
    parser.add_argument(
        "--max-body-bytes",
        metavar="N",
        default=str(Settings().max_body_bytes),
        help="The service's own TABSERVE_MAX_BODY_BYTES: the hostile user sends more.",
    )
    parser.add_argument(
        "--seed", metavar="N", default="0", help="Of the rows that are asked with, and of the arrivals."
    )
    # Not for the web page: who may use it may start load, and not read or write files.
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="A file with the API key to ask with: of the scope predict; with metrics too, the page shows those.",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--results",
        metavar="DIR",
        default=str(RESULTS),
        help="Where each run gets a folder with a page, its plots, and tables (default: loadtest/results).",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--runs-page",
        metavar="FILE",
        default=str(RUNS_PAGE),
        help="The page whose table of runs gets a line (default: docs/benchmarks.md).",
        include_in_web_ui=False,
    )
    parser.add_argument(
        "--no-results",
        action="store_true",
        help="Keep nothing of the run: no folder, no line.",
        include_in_web_ui=False,
    )


@dataclass(frozen=True)
class Options:
    """The options of one run."""

    objectives: slo.Objectives
    arrival_rate: float | None
    """Requests a second at a share of 1; None in a closed loop."""
    is_poisson: bool
    max_in_flight: int
    stages: tuple[Stage, ...] | None
    expected_model: str | None
    model_may_change: bool
    max_body_bytes: int
    seed: int
    results: Path | None
    """Where a folder for each run is made; None where nothing is kept."""
    runs_page: Path
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, parsed: Any) -> "Options":
        """Checks what Locust parsed, or its web page was given.

        Raises:
            BadInputError: for the first option that cannot be used.
        """
        factor = _number("--duration-factor", parsed.duration_factor, "a number above 0")
        stages = stages_of(parsed.profile, factor) if parsed.profile else None
        if stages and parsed.run_time:
            raise BadInputError("--profile and --run-time both say how long the run takes: give one of them")
        if parsed.arrivals not in SPREADS:
            raise BadInputError(f"--arrivals is {parsed.arrivals!r}, expected {' or '.join(SPREADS)}")
        rate: float | None = EXPECTED_PEAK_RATE if stages else None
        if parsed.arrival_rate:
            rate = _number("--arrival-rate", parsed.arrival_rate, "a number of requests a second above 0")
        return cls(
            objectives={**slo.from_file(), **(slo.from_text(parsed.slo) if parsed.slo else {})},
            arrival_rate=rate,
            is_poisson=parsed.arrivals == "poisson",
            max_in_flight=_whole_number("--max-in-flight", parsed.max_in_flight, 1),
            stages=stages,
            expected_model=parsed.expect_model or None,
            model_may_change=parsed.model_may_change,
            max_body_bytes=_whole_number("--max-body-bytes", parsed.max_body_bytes, 1),
            seed=_whole_number("--seed", parsed.seed, 0),
            results=None if parsed.no_results else Path(parsed.results),
            runs_page=Path(parsed.runs_page),
            api_key=_key_of(parsed.api_key_file) if parsed.api_key_file else None,
        )

    @property
    def key_header(self) -> dict[str, str]:
        """What shows a service who asks."""
        return {"X-API-Key": self.api_key} if self.api_key else {}

    def set_users(self, parsed: Any) -> None:
        """Says how many users an open loop has, where the command line does not: Locust would start a single one."""
        if self.arrival_rate is not None:
            parsed.num_users = parsed.num_users or USERS
            parsed.spawn_rate = parsed.spawn_rate or min(float(parsed.num_users), MOST_SPAWNED_PER_SECOND)

    def random_numbers(self, *place: object) -> random.Random:
        """Numbers of their own for each place in each process, the same in each run with the same seed."""
        return random.Random(":".join(map(str, (self.seed, *place))))  # noqa: S311


def _key_of(path: str) -> str:
    try:
        key = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise BadInputError(f"--api-key-file {path} cannot be read: {getattr(error, 'strerror', 'no text')}") from error
    if not key.isprintable() or not key:
        raise BadInputError(f"--api-key-file {path} has to hold one line, the key that `tabserve keys create` showed")
    return key


def _number(option: str, text: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise BadInputError(f"{option} is {text!r}, expected {expected}")
    return number


def _whole_number(option: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= least):
        raise BadInputError(f"{option} is {text!r}, expected a whole number of at least {least}")
    return int(text)
