"""How Locust follows a load profile."""

from locust import LoadTestShape

from loadtest.profiles import Stage

MOST_SPAWNED_PER_SECOND = 100.0  # Locust warns of more


class ProfileShape(LoadTestShape):
    """Has Locust follow a profile: each user brings its part of the arrival rate, so a share of load is one of users.

    Args:
        users: how many there are at the expected peak.
    """

    def __init__(self, stages: tuple[Stage, ...], *, users: int, spawn_rate: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stages = stages
        self._users = users
        self._spawn_rate = spawn_rate

    def tick(self) -> tuple[int, float] | None:
        """How many users there should be now; None where the profile is over."""
        now: float = self.get_run_time()  # type: ignore[no-untyped-call]
        end = 0.0
        for stage in self._stages:
            end += stage.seconds
            if now < end:
                return max(1, round(self._users * stage.share)), self._spawn_rate
        return None
