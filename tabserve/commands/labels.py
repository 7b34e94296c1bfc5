"""`tabserve labels`: what came true of predictions."""

import logging
from pathlib import Path

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of
from tabserve.contract import Contract
from tabserve.history import label_file
from tabserve.history.window import BadQuestionError
from tabserve.prediction_log.places import place_of
from tabserve.settings import Settings

logger = logging.getLogger("tabserve.cli")


def add_label_commands(commands: Commands) -> None:
    from_file = add_command(
        commands,
        "import",
        labels_import,
        "Labels from a file with the columns prediction_id and label, or business_value, or both",
    )
    from_file.add_argument("file", type=Path, metavar="FILE", help="a .csv or .parquet file")
    from_file.add_argument(
        "--model", metavar="NAME", help="whose labels they are, or name:version (default: that which is served)"
    )
    from_file.add_argument("--skip-bad", action="store_true", help="import what can be; else one bad row keeps all out")
    add_log_url(from_file)


def labels_import(options: Options) -> int:
    place = place_of(log_url_of(options))
    if place is None:
        raise BadQuestionError("labels are not kept: the address of the prediction log is null:")
    found = label_file.read_label_file(options.file, _contract(options.model))
    for fault in found.faults:
        logger.error("%s: %s", options.file, fault)
    if found.n_bad_rows and not options.skip_bad:
        raise BadQuestionError(
            f"{found.n_bad_rows} rows of {options.file} are no labels, nothing was imported: "
            "mend them, or leave them out with --skip-bad"
        )
    if len(found.labels):
        label_file.save(found.labels, place)
    skipped = f", {found.n_bad_rows} rows were left out" if found.n_bad_rows else ""
    logger.info("%d labels were imported%s", len(found.labels), skipped)
    return 0


def _contract(wanted: str | None) -> Contract:
    from tabserve import model_store  # here, because it imports BentoML, which takes a second
    from tabserve.rollout import choose_model

    try:
        model = model_store.find(wanted) if wanted else choose_model(Settings.from_environment())
        return model_store.read_contract(model)
    except model_store.ModelRefusedError as error:
        raise BadQuestionError(str(error)) from error
