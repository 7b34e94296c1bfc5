"""`tabserve evaluate`: a challenger against the champion, on the same labelled rows."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of, say
from tabserve.commands.compare_models import ends_with_two
from tabserve.history.records import readable_place
from tabserve.history.window import last, length_of

if TYPE_CHECKING:
    from tabserve.lifecycle.comparison import Decision
    from tabserve.lifecycle.effects import Metric
    from tabserve.lifecycle.evaluation import Evaluation

logger = logging.getLogger("tabserve.cli")

NEEDS = ("better", "not-worse")


def add_evaluate_command(commands: Commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        evaluate,
        "A model against the champion on the same labelled rows. Exit codes: 0 better, or not worse; 1 worse; 2 error; "
        "3 neither is shown",
    )
    command.add_argument("tag", metavar="TAG", help="the challenger, name:version")
    command.add_argument("--against", metavar="TAG", help="the champion (default: the model that is served)")
    add_rows(command)
    command.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="COLUMN",
        help="look at each part of this feature apart; may be repeated (default: every feature)",
    )
    command.add_argument("--metric", choices=("accuracy", "roc_auc", "log_loss", "rmse"), help="what decides")
    command.add_argument("--need", choices=NEEDS, default="not-worse", help="what ends with 0 (default: not-worse)")
    command.add_argument("--html", type=Path, metavar="DIR", help="write a page with plots into this folder")


def add_rows(command: argparse._ActionsContainer) -> None:
    """Which labelled rows models are compared on."""
    command.add_argument("--window", default="30d", metavar="30d", help="of the prediction log: 90m, 24h, 7d")
    command.add_argument(
        "--data", type=Path, metavar="FILE", help="a labelled .csv or .parquet file instead of the log"
    )
    add_log_url(command)


@ends_with_two
def evaluate(options: Options) -> int:
    found, decision = compared(
        options, options.tag, options.against, options.need, by=options.by, metric=options.metric
    )
    if options.html:
        from tabserve.lifecycle.evaluation_page import write_page

        logger.info("the page is %s", write_page(found, decision, options.html))
    return decision.exit_code


@ends_with_two
def compared(
    options: Options,
    tag: str,
    against: str | None,
    need: str,
    *,
    by: Sequence[str] = (),
    metric: "Metric | None" = None,
) -> "tuple[Evaluation, Decision]":
    """Compares two models on the rows that the options of `add_rows` name, and says what was found.

    Args:
        against: the champion's tag; None for the model that is served.
        need: one of `NEEDS`.
    """
    # Here, because they import BentoML and DuckDB, which takes seconds.
    from tabserve.lifecycle.comparison import decide
    from tabserve.lifecycle.contenders import contenders
    from tabserve.lifecycle.evaluation import evaluate_file, evaluate_log
    from tabserve.lifecycle.evaluation_text import text_of

    window = last(length_of(options.window))
    of = contenders(tag, against)
    if options.data:
        found = evaluate_file(of, options.data, by, metric)
    else:
        found = evaluate_log(of, readable_place(log_url_of(options)), window, by, metric)
    decision = decide(found.comparison, "better" if need == "better" else "not worse")
    say(text_of(found, decision))
    return found, decision
