"""`tabserve retrain`: the training of a model once more, on what its predictions came true as, too."""

import argparse
import contextlib
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of, percent, say
from tabserve.history.records import readable_place
from tabserve.history.window import BadQuestionError, Window, last, length_of
from tabserve.rollout_state import ROLLOUT_FILE, BadRolloutError, read_rollout
from tabserve.settings import Settings

if TYPE_CHECKING:
    from tabserve.lifecycle.comparison import Verdict
    from tabserve.model_store import StoredModel

logger = logging.getLogger("tabserve.cli")

# What the monitor says when it calls; see monitoring/watching/retraining.py.
MODEL_VARIABLE = "TABSERVE_RETRAIN_MODEL"
REASONS_VARIABLE = "TABSERVE_RETRAIN_REASONS"

NOT_GOOD_ENOUGH = 1
BAD_INPUT = 2
NOT_NOW = 3


def add_retrain_command(commands: Commands) -> None:
    command = add_command(
        commands, "retrain", retrain, "A new version of a model: its own training, on newly labelled predictions too"
    )
    command.add_argument(
        "--model",
        metavar="NAME",
        help=f"or name:version (default: as {MODEL_VARIABLE} says, which the monitor sets; else that which is served)",
    )
    command.add_argument("--window", default="30d", metavar="30d", help="of predictions: minutes, hours or days")
    command.add_argument("--mature", metavar="2d", help="end the window so long ago, for labels to come")
    command.add_argument(
        "--original", type=Path, metavar="FILE", help="the table of the first training, where it is no longer there"
    )
    command.add_argument(
        "--original-share",
        type=percent,
        metavar="PERCENT",
        help="of the training rows that may be of that table, chosen by chance (default: it stays whole)",
    )
    command.add_argument(
        "--minimum-labels",
        type=_whole,
        metavar="N",
        help="with fewer labelled rows in the window nothing is trained (default: 500)",
    )
    command.add_argument(
        "--no-challenger", action="store_true", help="save the version only; else it becomes the champion's shadow"
    )
    add_log_url(command)


def retrain(options: Options) -> int:
    """Says how both versions do on the latest rows, what became of the new one, and last its tag."""
    try:
        from tabserve.lifecycle import retraining  # here, because training comes with an extra
        from tabserve.training.columns import BadTableError
        from tabserve.training.recipe import GateFailedError
    except ModuleNotFoundError as error:
        raise BadQuestionError(
            f"retraining needs {error.name}, which comes with the extra `training`: pip install tabserve[training]"
        ) from error
    from tabserve import model_store  # it imports BentoML, which takes a second
    from tabserve.lifecycle.shadowing import offer_as_shadow

    window, place = _window(options), readable_place(log_url_of(options))
    enough = retraining.ENOUGH_LABELS if options.minimum_labels is None else options.minimum_labels
    rollout = model_store.home() / ROLLOUT_FILE
    try:
        model = _model(options.model or os.environ.get(MODEL_VARIABLE), rollout)
        with contextlib.redirect_stdout(sys.stderr):  # whatever a user's code prints, our page alone is our output
            done = retraining.retrain(
                model,
                place,
                window,
                original=options.original,
                original_share=options.original_share,
                enough_labels=enough,
                why=os.environ.get(REASONS_VARIABLE, ""),
            )
    except GateFailedError as error:
        logger.error("not good enough, nothing was saved: %s", error)
        return NOT_GOOD_ENOUGH
    except (BadRolloutError, BadTableError, model_store.ModelRefusedError) as error:
        logger.error("bad input: %s", error)
        return BAD_INPUT
    except retraining.NotNowError as error:
        logger.error("nothing was trained: %s", error)
        return NOT_NOW
    found = retraining.judged(done)
    say(*retraining.compared(done, model.tag), f"{found.verdict.upper()}: {found.because}")
    if not options.no_challenger:
        why = os.environ.get(REASONS_VARIABLE, "") or "retrained by hand"
        say(offer_as_shadow(model_store.home(), done.tag, model.tag, why))
    elif not rollout.exists():
        logger.warning("no rollout.yaml names a champion: a service that starts now serves the newest, %s", done.tag)
    say(f"next: {next_step(found.verdict, done.tag, options)}", done.tag)
    return 0


def next_step(verdict: "Verdict", tag: str, options: Options) -> str:
    """What to type after a retraining with this verdict on its test rows."""
    from tabserve.lifecycle.comparison import LEAST_ROWS

    where = f" --log-url {options.log_url}" if options.log_url else ""
    if verdict == "better":
        return f"tabserve promote {tag} --why TEXT"
    if verdict == "worse":
        return "tabserve stop, where it is the shadow: it is not worth more traffic"
    return f"tabserve promote {tag} --needs better{where}, when {LEAST_ROWS:,} predictions from now on have labels"


def _window(options: Options) -> Window:
    window = last(length_of(options.window))
    mature = length_of(options.mature) if options.mature else timedelta()
    return Window(window.since - mature, window.until - mature)


def _model(wanted: str | None, rollout: Path) -> "StoredModel":
    """The version to begin from: of a name alone that which is champion, else the newest."""
    from tabserve import model_store
    from tabserve.rollout import choose_model

    state = read_rollout(rollout)
    if wanted is None:
        return choose_model(Settings.from_environment())
    is_of_champion = state is not None and state.champion.partition(":")[0] == wanted
    return model_store.find(state.champion if state is not None and is_of_champion else wanted)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)
