"""`tabserve ab-result`: what an A/B test has found, or what is missing to its horizon."""

from typing import TYPE_CHECKING

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of, percent, say
from tabserve.commands.compare_models import ends_with_two
from tabserve.history.records import readable_place
from tabserve.history.window import BadQuestionError, Window, last, length_of

if TYPE_CHECKING:
    from tabserve.lifecycle import experiment

LOOKED_BACK = "180d"  # for the rows of a test that the history does not know; nobody lets one run for half a year


def add_ab_result_command(commands: Commands) -> None:
    command = add_command(
        commands,
        "ab-result",
        ab_result,
        "What the A/B test of rollout.yaml has found. Exit codes: 0 better, or not worse; 1 worse; 2 error; 3 not "
        "enough data, or no difference shown",
    )
    end = command.add_mutually_exclusive_group()
    end.add_argument("--horizon", metavar="14d", help="said at the first look: compare rows of so long a time, then")
    end.add_argument(
        "--detect",
        type=float,
        metavar="EFFECT",
        help="or: end when this effect would be found with 80 %% (0.01 is a point)",
    )
    command.add_argument(
        "--outcome", choices=("label", "business-value"), help="what is compared (default: label, whether it came true)"
    )
    command.add_argument("--control", metavar="TAG", help="of a test that is over: the champion then")
    command.add_argument("--challenger", metavar="TAG", help="and the challenger")
    command.add_argument("--share", type=percent, metavar="PERCENT", help="that went to the challenger")
    command.add_argument("--by", metavar="FIELD", help="what the choice was sticky by: a feature, or header:NAME")
    add_log_url(command)


@ends_with_two
def ab_result(options: Options) -> int:
    from tabserve import model_store  # here, because they import BentoML and DuckDB
    from tabserve.assignment import key_of
    from tabserve.lifecycle import experiment
    from tabserve.lifecycle.experiment_plan import planned
    from tabserve.lifecycle.experiment_text import text_of
    from tabserve.rollout_state import BadRolloutError

    test, window = _test(options)
    try:
        contract = model_store.read_contract(model_store.find(test.control))
        key_of(test.by, contract)  # before a plan is made for what nobody can be sticky by
    except (model_store.ModelRefusedError, BadRolloutError) as error:
        raise BadQuestionError(str(error)) from error
    place = readable_place(log_url_of(options))
    plan = planned(
        model_store.home(), test.name, outcome=options.outcome, horizon=options.horizon, detect=options.detect
    )
    found = experiment.find(test, plan, contract, place, window)
    say(text_of(found))
    return {"better": 0, "not worse": 0, "worse": 1, "inconclusive": 3}[found.verdict]


def _test(options: Options) -> "tuple[experiment.AbTest, Window]":
    """Which test is meant, and the time in which its rows are."""
    from tabserve import deployments, model_store
    from tabserve.lifecycle import experiment
    from tabserve.rollout_state import ROLLOUT_FILE, BadRolloutError, Challenger, read_rollout

    said = options.control, options.challenger, options.share, options.by
    if any(said) and not all(said):
        raise BadQuestionError("of a test that is over say all: --control, --challenger, --share and --by")
    if all(said) and options.control == options.challenger:
        raise BadQuestionError(f"control and challenger are the same version, {options.control}")
    home, champion, challenger = model_store.home(), options.control, None
    try:
        if all(said):
            challenger = Challenger.of(options.challenger, "ab", options.share, options.by)
        elif state := read_rollout(home / ROLLOUT_FILE):
            champion, challenger = state.champion, state.challenger
        if challenger is None or challenger.mode != "ab":
            raise BadQuestionError(
                "no A/B test runs by rollout.yaml: start one with `tabserve ab`, or say of one that is over --control, "
                "--challenger, --share and --by"
            )
        stood = deployments.stood(deployments.happened(home), champion, challenger)
    except BadRolloutError as error:
        raise BadQuestionError(str(error)) from error
    window = last(length_of(LOOKED_BACK))
    if stood is not None:
        window = Window(stood[0], stood[1] or window.until)
    return experiment.AbTest(
        champion, challenger.model, challenger.share, challenger.by, *(stood or (None, None))
    ), window
