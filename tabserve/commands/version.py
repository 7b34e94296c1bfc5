"""`tabserve version`: which build this is."""

from tabserve.build import this_build
from tabserve.commands import Commands, Options, add_command, say


def add_version_command(commands: Commands) -> None:
    add_command(commands, "version", show_version, "Version, commit and, in a Bento, the model that it pins")


def show_version(_options: Options) -> int:
    say(*(f"{name}: {value}" for name, value in this_build().items() if value is not None))
    return 0
