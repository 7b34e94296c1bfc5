"""Trains a model on a table and saves it in the BentoML model store.

Exit codes: 0 saved (the tag is the last line), 1 not good enough, 2 bad input, 3 it could not be saved.
"""

import argparse
import contextlib
import logging
import math
import re
import sys
from pathlib import Path
from types import ModuleType

from sklearn.pipeline import Pipeline

from tabserve import model_store
from tabserve.training import artifact, pipelines, recipe
from tabserve.training.arguments import Arguments
from tabserve.training.columns import BadTableError
from tabserve.training.evaluation import Gates
from tabserve.training.table import Table, read_rules

logger = logging.getLogger("train")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        told = arguments_of(options)
        table = told.read_table()
        told.gates.check(table.contract)
        with contextlib.redirect_stdout(sys.stderr):  # whatever a user's code prints, the tag alone is our output
            pipeline, modules = choose_pipeline(told, table)
            model = recipe.train(table, pipeline, told)
            tag = artifact.save(model, table, options.name or table.source.name, modules)
    except BadTableError as error:
        logger.error("bad input: %s", error)
        return 2
    except recipe.GateFailedError as error:
        logger.error("not good enough, nothing was saved: %s", error)
        return 1
    except (OSError, model_store.ModelRefusedError) as error:
        logger.error("nothing was saved: %s", error)
        return 3
    logger.info("saved in %s", model_store.find(tag).directory)
    sys.stdout.write(f"{tag}\n")
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="a .csv or .parquet file (default: the built-in table)"
    )
    parser.add_argument("--target", metavar="COLUMN", help="the column to predict; needed with --data")
    parser.add_argument("--name", type=model_name, help="of the model (default: from the file's name)")
    parser.add_argument("--task", choices=["auto", "binary", "multiclass", "regression"], default="auto")
    parser.add_argument("--id-columns", metavar="A,B", default="", help="columns to leave out")
    parser.add_argument("--time-column", metavar="T", help="test on the latest fifth of the rows by this column")
    parser.add_argument(
        "--rules", type=Path, metavar="FILE", help="what the data cannot say: features: {NAME: {min: 0}}"
    )
    parser.add_argument(
        "--estimator", metavar="MODULE:FUNCTION", help="returns your own unfitted scikit-learn Pipeline"
    )
    parser.add_argument("--engine", choices=["auto", "scikit-learn"], default="auto", help="auto: ONNX where it agrees")
    parser.add_argument(
        "--limitation",
        type=sentence,
        action="append",
        default=[],
        metavar="TEXT",
        help="what it is not for, in its card and in /metadata; again for each",
    )
    parser.add_argument("--min-accuracy", type=number, metavar="X", help="on the test rows (built-in table: 0.92)")
    parser.add_argument("--min-roc-auc", type=number, metavar="X")
    parser.add_argument("--max-mae", type=number, metavar="X")
    parser.add_argument(
        "--max-latency-ms", type=number, metavar="X", default=200.0, help="median of one row (default: 200)"
    )
    options = parser.parse_args(arguments)
    if options.data is None:
        only_with_data = {"--target": options.target, "--rules": options.rules, "--time-column": options.time_column}
        given = [option for option, value in only_with_data.items() if value is not None]
        if given or options.id_columns or options.task != "auto":
            parser.error(f"{', '.join(given) or '--id-columns and --task'}: the built-in table takes none, use --data")
    elif options.target is None:
        parser.error("--data needs --target COLUMN, the column to predict")
    return options


def model_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9_]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"expected at most 40 lower case letters, digits and underscores, got {text!r}"
        )
    return text


def sentence(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a sentence in one line, got {text!r}")
    return text.strip()


def number(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return float(text)


def arguments_of(options: argparse.Namespace) -> Arguments:
    min_accuracy = options.min_accuracy
    if min_accuracy is None and options.data is None:
        min_accuracy = 0.92
    return Arguments(
        data=None if options.data is None else str(options.data),
        target=options.target,
        id_columns=tuple(name for name in map(str.strip, options.id_columns.split(",")) if name),
        time_column=options.time_column,
        task=None if options.task == "auto" else options.task,
        rules=read_rules(options.rules) if options.rules else {},
        estimator=options.estimator,
        engine=options.engine,
        limitations=tuple(options.limitation),
        gates=Gates(min_accuracy, options.min_roc_auc, options.max_mae, options.max_latency_ms),
        seed=pipelines.SEED,
    )


def choose_pipeline(told: Arguments, table: Table) -> tuple[Pipeline, tuple[ModuleType, ...]]:
    """The unfitted pipeline, and the user's modules that it needs."""
    if told.estimator:
        own = pipelines.user_pipeline(told.estimator, table.contract)
        return own.pipeline, own.modules
    return pipelines.builtin_pipeline() if told.data is None else pipelines.default_pipeline(table.contract), ()


if __name__ == "__main__":
    sys.exit(main())
