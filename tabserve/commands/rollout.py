"""Which model answers: `tabserve models`, `promote`, `rollback`, `shadow`, `canary`, `ab`, `stop`, `pause`, `resume`,
`history` and `guard`.
"""

import argparse
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tabserve.commands import Commands, Options, add_command, log_url_of, over_with_ctrl_c, say
from tabserve.commands.evaluate import NEEDS, add_rows, compared
from tabserve.history.records import readable_place
from tabserve.history.window import BadQuestionError, length_of
from tabserve.rollout_state import HEADER, Challenger, Mode, RolloutState

if TYPE_CHECKING:
    from tabserve.lifecycle.canary_watch import Counts, Look, Proof

logger = logging.getLogger("tabserve.cli")

NOT_GOOD = 1  # exit codes
NOT_SAID = 3

STEPS = "5,25,50,100"
NOTHING = "nothing"  # has to be shown of a canary, when whoever starts it takes that on himself
JOB = "tabserve"  # of monitoring/alerts/prometheus.yaml
ADDRESS = "127.0.0.1:9099"


def add_rollout_commands(commands: Commands) -> None:
    add_command(commands, "models", show_models, "Every version: how good on its test rows, how old, where it is used")
    add_command(commands, "history", show_history, "Every change of the rollout: when, who, from, to, why")
    _add_changes(commands)
    _add_challengers(commands)
    back = add_command(commands, "guard", guard, "Roll back or pause by itself, where Alertmanager's webhook says so")
    back.add_argument("--listen", type=_address, default=ADDRESS, metavar="HOST:PORT", help=f"(default: {ADDRESS})")
    back.add_argument("--within", default="24h", metavar="24h", help="so long after a promotion (default: 24h)")
    back.add_argument(
        "--pause-on", action="append", default=[], metavar="ALERT", help="pause in place of it where this alert rings"
    )


def _add_changes(commands: Commands) -> None:
    up = add_command(commands, "promote", promote, "Make a version champion")
    up.add_argument("tag", metavar="TAG", help="name:version, as `tabserve models` lists them")
    up.add_argument(
        "--allow-contract-change", action="store_true", help="although it breaks callers, who have been told"
    )
    up.add_argument("--why", metavar="TEXT", help="a sentence for the history; needed without --needs")
    judged = up.add_argument_group(
        "only where it is shown to be good, as `tabserve evaluate` does. Exit codes: 0 promoted; 1 worse; 3 not shown"
    )
    judged.add_argument("--needs", choices=NEEDS, help="than the champion, on the same labelled rows")
    add_rows(judged)
    down = add_command(commands, "rollback", rollback, "Go back to the champion before")
    halt = add_command(commands, "pause", pause, "Have no model answer: 503, with the reason")
    halt.add_argument("--why", required=True, metavar="TEXT", help="a sentence for the history")
    down.add_argument("--why", default="rolled back by hand", metavar="TEXT", help="a sentence for the history")
    for name, run, text in (
        ("stop", stop, "End the challenger: the champion answers alone"),
        ("resume", resume, "Have the models answer again"),
    ):
        command = add_command(commands, name, run, text)
        command.add_argument("--why", default=f"{name} by hand", metavar="TEXT", help="a sentence for the history")


def _add_challengers(commands: Commands) -> None:
    beside = add_command(commands, "shadow", shadow, "Ask a version beside the champion; nobody sees its answers")
    some = add_command(commands, "canary", canary, "Have a version answer a share of the requests")
    split = add_command(commands, "ab", ab, "Have a version answer a share of the keys, to compare outcomes")
    for command, share in ((beside, 100.0), (some, None), (split, 50.0)):
        command.add_argument("tag", metavar="TAG", help="name:version, under the champion's contract")
        default = "" if share is None else f" (default: {share:g})"
        command.add_argument("--share", type=float, default=share, metavar="PERCENT", help=f"of the requests{default}")
        command.add_argument("--why", default="", metavar="TEXT", help="a sentence for the history")
    by = f"a feature or {HEADER}NAME, whose values are always answered by the same version"
    some.add_argument("--by", metavar="FIELD", help=by)
    split.add_argument("--by", required=True, metavar="FIELD", help=by)
    watched = some.add_argument_group("going up by itself, and back where it is worse, until Ctrl-C")
    read = watched.add_mutually_exclusive_group()
    read.add_argument(
        "--metrics", type=_url, action="append", metavar="URL", help="/metrics of the service, of each replica"
    )
    read.add_argument("--prometheus", type=_url, metavar="URL", help="or the Prometheus that scrapes them")
    watched.add_argument("--job", default=JOB, metavar="NAME", help=f"there (default: {JOB})")
    watched.add_argument("--steps", type=_steps, default=STEPS, metavar=STEPS, help="percent")
    watched.add_argument("--every", type=_seconds, default="5m", metavar="5m", help="how long each step is observed")
    watched.add_argument("--key-file", type=Path, metavar="FILE", help="with an API key of the scope metrics")
    watched.add_argument("--max-errors", type=float, default=1.0, metavar="PERCENT", help="(default: 1)")
    watched.add_argument("--max-p99", type=float, default=300.0, metavar="MS", help="in milliseconds (default: 300)")
    watched.add_argument("--no-labels", action="store_true", help="do not look for labels in the prediction log")
    watched.add_argument(
        "--needs",
        choices=(*NEEDS, NOTHING),
        help="what labelled rows have to show before it is promoted, as `promote --needs` (default: better)",
    )
    add_rows(watched)


# --- what there is


def show_models(_options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle.versions import table

        say(*table(home))
    return 0


def show_history(_options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.deployments import history

        for change in history(home):
            before, after = _shown(change.before), _shown(change.after)
            say(f"{change.time[:19]}  {change.who}  {change.action}", f"    {before} -> {after}")
            say(f"    {change.why}")
    return 0


def _shown(state: RolloutState | None) -> str:
    if state is None:
        return "nothing"
    of = state.challenger
    by = f" by {of.by}" if of and of.by else ""
    return (
        state.champion
        + (f", {of.mode} {of.model} {of.share:g} %{by}" if of else "")
        + (", paused" if state.paused is not None else "")
    )


# --- changes


def promote(options: Options) -> int:
    if options.needs is None and options.why is None:
        raise BadQuestionError("say why, for the history: --why TEXT; or have it proved: --needs better")
    if options.needs is None and (options.data or options.log_url):
        raise BadQuestionError("--data and --log-url are for a proof: say --needs better, or leave them out")
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        why, champion = options.why, None
        if options.needs is not None:
            champion = changes.current(home).champion
            _, decision = compared(options, options.tag, champion, options.needs)
            if not decision.is_met:
                logger.warning("%s stays", champion)
                return decision.exit_code
            why = f"{why}; {decision}" if why else str(decision)
        state = changes.promote(
            home, options.tag, why, allow_contract_change=options.allow_contract_change, only_from=champion
        )
    return _done(state)


def rollback(options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        return _done(changes.rollback(home, options.why))


def stop(options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        return _done(changes.stop(home, options.why))


def pause(options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        return _done(changes.pause(home, options.why))


def resume(options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        return _done(changes.resume(home, options.why))


def shadow(options: Options) -> int:
    return _challenge(options, "shadow", by=None)


def ab(options: Options) -> int:
    return _challenge(options, "ab", by=options.by)


def canary(options: Options) -> int:
    if options.metrics is None and options.prometheus is None:
        of_the_watch = (options.needs, options.key_file, options.data)
        if options.share is None or any(given is not None for given in of_the_watch):
            raise BadQuestionError("a canary needs --share 5, or --metrics URL or --prometheus URL to go up by itself")
        return _challenge(options, "canary", by=options.by)
    if options.share is not None and options.share != options.steps[0]:
        raise BadQuestionError(f"--share is {options.share:g}, and the first of --steps {options.steps[0]:g}")
    return _watch(options)


def _challenge(options: Options, mode: Mode, by: str | None) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle import changes

        why = options.why or f"{mode} by hand"
        return _done(changes.challenge(home, Challenger.of(options.tag, mode, options.share, by), why))


def _done(state: RolloutState) -> int:
    say(_shown(state))
    return 0


# --- what goes on by itself


def _watch(options: Options) -> int:
    with _refusals_named() as home:
        from tabserve.lifecycle.canary_judge import Limits
        from tabserve.lifecycle.canary_watch import Plan, watch

        Challenger.of(options.tag, "canary", options.steps[0], options.by)  # before anybody is asked
        needs = options.needs or NEEDS[0]
        limits = Limits(error_share=options.max_errors / 100, p99_seconds=options.max_p99 / 1000)
        plan = Plan(options.tag, options.steps, options.every, options.by, limits)
        ended = watch(home, plan, _look(options, home), over_with_ctrl_c(), _proof(options, home, needs))
    if ended is None:
        logger.info(
            "not watched any more; the canary stays as it is: `tabserve stop`, `tabserve promote %s --why TEXT`, or "
            "watch it again",
            options.tag,
        )
        return NOT_SAID
    say(ended.why)
    return 0 if ended.is_promoted else NOT_GOOD


def _proof(options: Options, home: Path, needs: str) -> "Proof | None":
    from tabserve.lifecycle import changes

    if needs == NOTHING:
        return None
    if not options.data:
        readable_place(log_url_of(options))  # or it would be said after the last step
    return lambda: compared(options, options.tag, changes.current(home).champion, needs)[1]


def _look(options: Options, home: Path) -> "_Looking":
    from tabserve.lifecycle.canary_watch import counts_in_prometheus, counts_of

    key = _key(options.key_file) if options.key_file else None
    log_url = None if options.no_labels else log_url_of(options)
    counts: Callable[[], Counts]
    if options.prometheus:
        counts = partial(counts_in_prometheus, options.prometheus, options.job, options.tag)
    else:
        counts = partial(counts_of, options.metrics, options.tag, key)
    return _Looking(home, counts, options.tag, None if log_url == "null:" else log_url)


def _key(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadQuestionError(f"no key can be read from {file}: {error}") from error


class _Looking:
    """Looks at the service's counters, and at the labels since now."""

    def __init__(self, home: Path, counts: Callable[[], "Counts"], tag: str, log_url: str | None) -> None:
        self._home, self._counts, self._tag = home, counts, tag
        self._place = readable_place(log_url) if log_url else None
        self._since = datetime.now(UTC)

    def __call__(self) -> "Look":
        from tabserve.lifecycle import canary_watch, changes

        counts = self._counts()
        if self._place is None:
            return canary_watch.Look(counts)
        champion = changes.current(self._home).champion
        return canary_watch.Look(counts, canary_watch.labels_so_far(self._place, champion, self._tag, self._since))


def guard(options: Options) -> int:
    host, port = options.listen
    with _refusals_named() as home:
        from tabserve.lifecycle.guard import Guard, server

        guarded = Guard(home, length_of(options.within), frozenset(options.pause_on))
        try:
            listening = server(guarded, host, port)
        except OSError as error:
            raise OSError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    is_over = over_with_ctrl_c()
    threading.Thread(target=listening.serve_forever, name="guard", daemon=True).start()
    say(f"guarding the champion of {home}, http://{host}:{listening.server_address[1]}")
    while not is_over.wait(1.0):
        pass  # the handler runs in this thread alone, and the kernel may wake another one
    listening.shutdown()
    return 0


# --- what is given on the command line


@contextlib.contextmanager
def _refusals_named() -> Iterator[Path]:
    """BentoML's home, which takes a second to import; a model that is refused is bad input."""
    from tabserve import model_store

    try:
        yield model_store.home()
    except model_store.ModelRefusedError as error:
        raise BadQuestionError(str(error)) from error


def _steps(text: str) -> list[float]:
    try:
        steps = [float(step) for step in text.split(",")]
    except ValueError:
        steps = []
    if not steps or sorted(set(steps)) != steps or not 0 < steps[0] <= steps[-1] <= 100:  # percent
        raise argparse.ArgumentTypeError(f"expected rising shares in percent such as {STEPS}, got {text!r}")
    return steps


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600}
    if not text[:-1].isdecimal() or text[-1] not in units or int(text[:-1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 5m or 1h, got {text!r}")
    return int(text[:-1]) * units[text[-1]]


def _url(text: str) -> str:
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname:
        raise argparse.ArgumentTypeError(f"expected http://host:port/metrics or the like, got {text!r}")
    return text


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:  # ports
        raise argparse.ArgumentTypeError(f"expected host:port such as {ADDRESS}, got {text!r}")
    return host, int(port)
