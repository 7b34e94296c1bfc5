"""What `python -m monitoring.watch` may be told."""

import argparse
from pathlib import Path

from monitoring.watching.trigger import ENOUGH_NEW_LABELS, OLDEST_DAYS


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m monitoring.watch",
        description="Drift and live quality on a schedule, with /metrics, an index page, and the trigger to retrain. "
        "Lengths are such as 20s, 90m, 24h or 7d. It ends with SIGTERM or Ctrl-C, and exit code 0; with 2 where it "
        "cannot begin.",
    )
    looks = command.add_argument_group("what is looked at")
    looks.add_argument(
        "--every",
        default="1h",
        metavar="1h",
        help="how often; windows end at whole multiples of it since midnight UTC",
    )
    looks.add_argument("--window", default="24h", metavar="24h", help="of drift: the newest, and the one before it")
    looks.add_argument("--quality-window", default="7d", metavar="7d", help="of live quality")
    looks.add_argument("--mature", metavar="2d", help="end the window of quality so long ago, for labels to come")
    looks.add_argument(
        "--against",
        choices=("training", "last-week"),
        default="training",
        help="what drift is held against: the training rows, or the same hours a week earlier",
    )
    looks.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="quality by each value of a feature, of variant or of label; may be repeated",
    )
    looks.add_argument("--model", metavar="NAME", help="only of this model, or of name:version")
    looks.add_argument("--log-url", metavar="URL", help="where the log is kept (default: as TABSERVE_LOG_URL says)")
    shows = command.add_argument_group("where it shows")
    shows.add_argument("--host", default="127.0.0.1", help="who may ask: 0.0.0.0 is everybody (default: this machine)")
    shows.add_argument("--port", type=int, default=9300, help="of /metrics and the pages (default: 9300)")
    shows.add_argument(
        "--reports",
        type=Path,
        metavar="DIR",
        help="keep results and reports there (default: monitoring in BentoML's home)",
    )
    shows.add_argument("--no-reports", action="store_true", help="results and index page, no reports by Evidently")
    retrains = command.add_argument_group("when retraining is due")
    retrains.add_argument("--on-retrain", metavar="COMMAND", help="run this, without a shell; one at a time")
    retrains.add_argument("--retrain-limit", default="4h", metavar="4h", help="how long that may take")
    retrains.add_argument("--retrain-webhook", metavar="URL", help="POST the model, the version and the reasons there")
    retrains.add_argument(
        "--retrain-cool-down", default="24h", metavar="24h", help="between two calls for a model, at the least"
    )
    retrains.add_argument(
        "--retrain-after-days",
        type=int,
        default=OLDEST_DAYS,
        metavar="DAYS",
        help=f"a model this old is a reason; 0: never (default: {OLDEST_DAYS})",
    )
    retrains.add_argument(
        "--retrain-after-labels",
        type=int,
        default=ENOUGH_NEW_LABELS,
        metavar="N",
        help=f"so many new labels since the training are a reason; 0: never (default: {ENOUGH_NEW_LABELS})",
    )
    return command
