"""What the commands that compare models share: their exit codes, and what they need beside the package."""

from collections.abc import Callable
from functools import wraps

from tabserve.commands import Options
from tabserve.history.records import UnreadableError
from tabserve.history.window import BadQuestionError
from tabserve.prediction_log.elsewhere import RefusedError


def ends_with_two(run: Callable[[Options], int]) -> Callable[[Options], int]:
    """Any fault ends such a command with 2: 3 says that nothing was shown, and 1 that a model is worse."""

    @wraps(run)
    def checked(options: Options) -> int:
        try:
            return run(options)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("monitoring", "loadtest", "matplotlib", "sklearn"):
                raise
            raise BadQuestionError(
                f"comparing models needs {error.name}: run it in the project's folder, with the extras training and "
                "monitoring (make .venv/monitoring.installed)"
            ) from error
        except (OSError, UnreadableError, RefusedError) as error:
            raise BadQuestionError(str(error)) from error

    return checked
