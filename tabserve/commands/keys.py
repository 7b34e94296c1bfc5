"""`tabserve keys`: the API keys of a file."""

import argparse
from pathlib import Path

from tabserve.access.api_keys import ApiKey, KeyFile, lasting
from tabserve.access.callers import SCOPES
from tabserve.access.key_store import changing, read_keys, write_keys
from tabserve.audit import audit_log
from tabserve.chained_log import ChainedLog
from tabserve.commands import Commands, Options, add_command, say
from tabserve.history.window import BadQuestionError
from tabserve.settings import Settings


def add_key_commands(commands: Commands) -> None:
    new = add_command(commands, "create", create_key, "Make a key, which is shown once and kept nowhere")
    new.add_argument("name", metavar="NAME", help="whose it is; stands in logs")
    new.add_argument(
        "--scopes", type=_scopes, required=True, metavar="SCOPE,...", help=f"what it opens: {', '.join(SCOPES)}"
    )
    new.add_argument("--expires", type=_lasting, metavar="90d", help="when, in days or hours (default: never)")
    shown = add_command(commands, "list", list_keys, "Every key: its id, name, scopes, and until when it holds")
    old = add_command(commands, "revoke", revoke_key, "Take a key away; services know it within a second")
    old.add_argument("key", metavar="NAME|ID", help="its id where several have the name")
    for command in (new, shown, old):
        command.add_argument(
            "--file", type=Path, metavar="FILE", help="where they are kept (default: as TABSERVE_API_KEYS_FILE says)"
        )


def create_key(options: Options) -> int:
    path, audit = _file(options), _audit_log()
    with changing(path):
        keys, key, shown = read_keys(path).created(options.name, options.scopes, options.expires)
        write_keys(path, keys)
        audit.append("create_key", key=key.id, name=key.name, scopes=list(key.scopes))
    say(shown)
    return 0


def list_keys(options: Options) -> int:
    keys = _existing(_file(options)).keys
    say(*map(_shown, keys) if keys else ["no keys"])
    return 0


def revoke_key(options: Options) -> int:
    path, audit = _file(options), _audit_log()
    _existing(path)
    with changing(path):
        keys, key = read_keys(path).revoked(options.key)
        write_keys(path, keys)
        audit.append("revoke_key", key=key.id, name=key.name)
    say(f"revoked: {_shown(key)}")
    return 0


def _file(options: Options) -> Path:
    named: Path | None = options.file
    if named is not None:
        return named
    configured = Settings.from_environment().api_keys_file
    if configured is None:
        raise BadQuestionError("which file? Name it with --file, or set TABSERVE_API_KEYS_FILE")
    return Path(configured)


def _existing(path: Path) -> KeyFile:
    if not path.exists():
        raise BadQuestionError(f"there is no {path}; `tabserve keys create` writes one")
    return read_keys(path)


def _audit_log() -> ChainedLog:
    """The audit log, which can be written: nothing is done of which it cannot be said."""
    from tabserve import model_store  # here, because it imports BentoML, which takes a second

    audit = audit_log(Settings.from_environment(), model_store.home())
    audit.check()
    return audit


def _shown(key: ApiKey) -> str:
    until = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "-"
    state = "  expired" if key.is_expired else ""
    return f"{key.id}  {key.name:<20}  {','.join(key.scopes):<24}  {key.created:%Y-%m-%d}  {until}{state}"


def _scopes(text: str) -> tuple[str, ...]:
    return tuple(scope.strip() for scope in text.split(","))


def _lasting(text: str) -> object:
    try:
        return lasting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
