"""Named load profiles: how much load for how long, as shares of the expected peak."""

from dataclasses import dataclass

from loadtest.errors import BadInputError

EXPECTED_PEAK_RATE = 500.0  # requests a second; `--arrival-rate` says another one
SHORTEST_STAGE_SECONDS = 2.0  # Locust asks a shape once a second how many users it wants


@dataclass(frozen=True)
class Stage:
    """A share of the expected peak, held for some seconds."""

    seconds: float
    share: float


PROFILES: dict[str, tuple[Stage, ...]] = {
    # Does everything work at all?
    "smoke": (Stage(30, 0.1),),
    # The expected peak, held.
    "steady": (Stage(300, 1.0),),
    # Where does it begin to hurt?
    "steps": tuple(Stage(60, share) for share in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
    # Much more within a second, and does it recover?
    "spike": (Stage(60, 0.2), Stage(30, 1.5), Stage(90, 0.2)),
    # Does anything grow?
    "soak": (Stage(7200, 0.7),),
    # Twice the expected peak.
    "peak": (Stage(60, 1.0), Stage(300, 2.0), Stage(60, 1.0)),
}


def stages_of(name: str, duration_factor: float) -> tuple[Stage, ...]:
    """The stages of a profile, each so many times as long as in the table, but long enough for Locust to see it.

    Raises:
        BadInputError: for a name that no profile has.
    """
    if name not in PROFILES:
        raise BadInputError(f"--profile is {name!r}, expected one of {', '.join(PROFILES)}")
    return tuple(
        Stage(max(SHORTEST_STAGE_SECONDS, stage.seconds * duration_factor), stage.share) for stage in PROFILES[name]
    )
