"""What the commands that compare models share: their exit codes, and what they need beside the package."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError
from tabserve.prediction_log.elsewhere import RefusedError

Said = ParamSpec("Said")
Found = TypeVar("Found")


def ends_with_two(run: Callable[Said, Found]) -> Callable[Said, Found]:
    """Any fault ends such a command with 2: 3 says that nothing was shown, and 1 that a model is worse."""

    @wraps(run)
    def checked(*said: Said.args, **named: Said.kwargs) -> Found:
        try:
            return run(*said, **named)
        except ModuleNotFoundError as error:
            if (error.name or "tabserve").partition(".")[0] == "tabserve":
                raise
            raise BadQuestionError(
                f"comparing models needs {error.name}, which comes with the extras `training` and `monitoring`: "
                "pip install tabserve[training,monitoring]"
            ) from error
        except (OSError, UnreadableError, RefusedError) as error:
            raise BadQuestionError(str(error)) from error

    return checked
