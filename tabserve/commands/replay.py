"""`tabserve replay`: the logged traffic answered again by another model."""

from tabserve.commands import Commands, Options, add_command, add_log_url, log_url_of, say
from tabserve.commands.compare_models import ends_with_two
from tabserve.history.records import readable_place
from tabserve.history.window import last, length_of


def add_replay_command(commands: Commands) -> None:
    command = add_command(
        commands,
        "replay",
        replay_log,
        "The logged traffic answered again by another model, and what would have been said differently; needs no label",
    )
    command.add_argument("tag", metavar="TAG", help="the model to ask, name:version")
    command.add_argument("--against", metavar="TAG", help="whose rows (default: those of the model that is served)")
    command.add_argument("--window", default="7d", metavar="7d", help="minutes, hours or days: 90m, 24h, 7d")
    add_log_url(command)


@ends_with_two
def replay_log(options: Options) -> int:
    from tabserve.lifecycle.contenders import contenders  # here, because they import BentoML and DuckDB
    from tabserve.lifecycle.replay import replay, text_of

    window = last(length_of(options.window))
    of = contenders(options.tag, options.against, may_be_the_same=True)
    say(text_of(replay(of, readable_place(log_url_of(options)), window), of, options.window))
    return 0
