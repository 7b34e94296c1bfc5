"""Service level objectives: read from slo.yaml or the command line, and held against what a run measured."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from loadtest.errors import BadInputError

SLO_FILE = Path(__file__).parent / "slo.yaml"

_EXPECTED = "p and a percentile with a time, such as p99=500ms or p99.9=2s, and errors with a percentage, errors=1%"
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_TIME = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s)")
_PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?) ?%")


@dataclass(frozen=True)
class Measured:
    """What a run gave."""

    requests: int
    failures: int
    """Of the requests: refused, unanswered, not sent in time, or answered wrongly."""
    wrong: int
    """Of the failures: answers that are not what they should be."""
    timed: int
    """Of the requests: those with a latency."""
    percentile_ms: Callable[[float], float]
    """The latency within which so many (0 to 1) of the timed requests were answered."""


@dataclass(frozen=True)
class Finding:
    """What became of one objective."""

    is_met: bool
    sentence: str

    def __str__(self) -> str:
        return f"SLO {'met' if self.is_met else 'MISSED'}: {self.sentence}"


@dataclass(frozen=True)
class Latency:
    """So many percent of the requests are answered within a limit."""

    percentile: float
    limit_ms: float

    def __str__(self) -> str:
        return f"{self.limit_ms:g} ms"

    def held_against(self, measured: Measured) -> Finding:
        if not measured.timed:
            return Finding(is_met=False, sentence=f"p{self.percentile:g} has no answer that it could be taken from")
        found = measured.percentile_ms(self.percentile / 100)
        sentence = f"p{self.percentile:g} was {found:g} ms, the objective is {self.limit_ms:g} ms"
        over = found - self.limit_ms
        return Finding(is_met=over <= 0, sentence=sentence if over <= 0 else f"{sentence}: {over:g} ms over it")


@dataclass(frozen=True)
class Errors:
    """At most this share of the requests fails, in percent."""

    limit_percent: float

    def __str__(self) -> str:
        return f"{self.limit_percent:g} %"

    def held_against(self, measured: Measured) -> Finding:
        if not measured.requests:
            return Finding(is_met=False, sentence="no request was made, so nothing can be said of errors")
        found = 100 * measured.failures / measured.requests
        sentence = (
            f"errors were {found:.3g} % ({measured.failures} of {measured.requests}), "
            f"the objective is {self.limit_percent:g} %"
        )
        over = found - self.limit_percent
        return Finding(
            is_met=over <= 0, sentence=sentence if over <= 0 else f"{sentence}: {over:.3g} percentage points over it"
        )


Objectives = Mapping[str, Latency | Errors]
"""By name: `p99`, `errors`."""


def from_file(path: Path = SLO_FILE) -> Objectives:
    """The objectives of a file like slo.yaml.

    Raises:
        BadInputError: where it cannot be read.
    """
    try:
        parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise BadInputError(f"the objectives in {path.name} cannot be read ({reason}): expected {_EXPECTED}") from error
    if not isinstance(parsed, dict) or not parsed:
        raise BadInputError(f"{path.name} holds no objectives: expected {_EXPECTED}")
    return {str(name): _objective(str(name), str(limit), path.name) for name, limit in parsed.items()}


def from_text(text: str) -> Objectives:
    """The objectives of `--slo p99=500ms,errors=1%`.

    Raises:
        BadInputError: for the first one that cannot be read.
    """
    found: dict[str, Latency | Errors] = {}
    for part in text.split(","):
        name, equals, limit = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise BadInputError(f"--slo has {part.strip()!r}: expected {_EXPECTED}, with commas between them")
        if name in found:
            raise BadInputError(f"--slo has {name} twice")
        found[name] = _objective(name, limit, "--slo")
    return found


def verdict(objectives: Objectives, measured: Measured) -> list[Finding]:
    """What became of each objective, and of the one that is never stated: no answer is wrong."""
    found = [objective.held_against(measured) for objective in objectives.values()]
    if measured.wrong:
        found.append(Finding(is_met=False, sentence=f"{measured.wrong} answers were wrong, the objective is none"))
    return found


def _objective(name: str, limit: str, where: str) -> Latency | Errors:
    percentile, time, percentage = _PERCENTILE.fullmatch(name), _TIME.fullmatch(limit), _PERCENTAGE.fullmatch(limit)
    if percentile and float(percentile[1]) > 0 and time:
        return Latency(float(percentile[1]), float(time[1]) * (1000 if time[2] == "s" else 1))
    if name == "errors" and percentage and float(percentage[1]) <= 100:
        return Errors(float(percentage[1]))
    raise BadInputError(f"{where} has {name}={limit}: expected {_EXPECTED}")
