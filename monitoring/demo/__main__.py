"""The whole way on one machine, in under three minutes: `make demo`, or `python -m monitoring.demo`.

Starts the service, the monitor, Prometheus and Alertmanager; asks with ordinary rows, then with rows of which two
columns have shifted, sends the labels of both, and says what rang and where the pages are. Windows and waiting times
are shortened: seconds in place of hours. A program that is not installed is named, and the demo goes on without it.
Exit codes: 0 the shift rang, or was found where nothing can ring; 1 it was not; 2 something did not start.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from loadtest.processes import NotStartedError, Server, find_program
from monitoring.demo.programs import ROOT, Rung, alerting, demo_environment, say, serving, watching
from monitoring.demo.traffic import send_traffic
from monitoring.reports.keeping import tidy
from monitoring.reports.runs import Run, read_runs
from monitoring.reports.wording import headline
from monitoring.results import DriftResult

LAST_ALERT_SECONDS = 30.0  # after the traffic, for what is on its way to ring
ALL_SECONDS = 160.0  # of the three minutes, when a report that is still being made is not waited for
QUIET, NOT_FOUND, NOT_STARTED = 0, 1, 2  # exit codes
PROGRAMS = ("prometheus", "prometheus-alertmanager")  # and what Debian calls their packages


def main() -> int:
    argparse.ArgumentParser(prog="python -m monitoring.demo", description=__doc__).parse_args()
    kept = ROOT / "monitoring/results" / f"demo-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}"
    kept.mkdir(parents=True)
    rung = Rung()
    try:
        with contextlib.ExitStack() as stack:
            return demonstrate(stack, kept, rung)
    except NotStartedError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_STARTED
    except KeyboardInterrupt:
        return NOT_FOUND


def demonstrate(stack: contextlib.ExitStack, kept: Path, rung: Rung) -> int:
    """Starts everything, makes the traffic, and tells what happened."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    for name in missing:
        say(rung.started, f"{name} is not installed (apt-get install {name}): the demo goes on without it")
    say(rung.started, "training the built-in model")
    service = stack.enter_context(serving(kept))
    monitor = stack.enter_context(watching(kept))
    addresses = {"service": service, "monitor": monitor}
    if not missing:
        addresses |= stack.enter_context(alerting(kept, service, monitor, rung))
    for name, server in addresses.items():
        say(rung.started, f"{name}: http://127.0.0.1:{server.port}")
    send_traffic(f"http://127.0.0.1:{service.port}", rung.started)

    is_expected = drift_rang if "alertmanager" in addresses else drift_was_found
    until = time.monotonic() + LAST_ALERT_SECONDS
    while not is_expected(rung, monitor) and time.monotonic() < until:
        time.sleep(0.5)
    is_found = is_expected(rung, monitor)
    reports = kept / "reports"
    alarm = newest_alarm(reports)
    if alarm is not None:
        say(rung.started, f"the monitor found: {headline(alarm.result)}")
        make_report(alarm, rung.started + ALL_SECONDS, demo_environment(kept))
        tidy(reports)
    nothing_rings = f"none, {' and '.join(missing)} would have told of them" if missing else "none"
    say(rung.started, f"alerts that fired: {', '.join(sorted(rung.fired)) or nothing_rings}")
    say(rung.started, f"what drifted, the trends and every report: {(reports / 'index.html').as_uri()}")
    say(rung.started, f"logs, the prediction log and the configuration of all of it: {kept}")
    if not is_found:
        say(rung.started, "the shift was NOT found in time")
    return QUIET if is_found else NOT_FOUND


def newest_alarm(reports: Path) -> Run | None:
    """The newest run of drift that was in alarm."""
    runs = [one for one in read_runs(reports).runs if isinstance(one.result, DriftResult)]
    return next((one for one in reversed(runs) if one.result.level == "alarm"), None)


def make_report(run: Run, until: float, environment: dict[str, str]) -> None:
    """Evidently's pages of a run, where the monitor left them out: it looks more often here than they can be made."""
    if not run.pages:
        command = [sys.executable, "-m", "monitoring.reports.process", str(run.folder)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=ROOT, env=environment, timeout=max(1.0, until - time.monotonic()), check=False)


def drift_rang(rung: Rung, _monitor: Server) -> bool:
    return any("FeatureDrift" in name for name in rung.fired)


def drift_was_found(_rung: Rung, monitor: Server) -> bool:
    """Where nothing can ring the monitor is asked."""
    text = httpx.get(f"http://127.0.0.1:{monitor.port}/metrics", timeout=10).text
    return re.search(r"^tabserve_drift_alarm\{.*\} 1\.0$", text, re.MULTILINE) is not None


if __name__ == "__main__":
    sys.exit(main())
