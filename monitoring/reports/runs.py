"""The runs that are kept in a folder: DIR/<model>/<version>/<kind>/<until>/result.json, and report files beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from monitoring.results import DriftResult, QualityResult

Kind = Literal["drift", "quality"]
RESULTS: dict[Kind, type[DriftResult] | type[QualityResult]] = {"drift": DriftResult, "quality": QualityResult}
RESULT_FILE = "result.json"
REPORTS = {"drift": "drift", "summary": "data summary", "quality": "quality"}
"""Names of report files, without .html, and what a link to them says."""

KEEP_PAGES = 60  # runs a model version and kind whose pages stay: 9 MB a drift run, 4 a quality run; results stay
MOST_READ = 500  # runs a model version and kind that are read for the trends: 20 days of hourly ones


@dataclass(frozen=True)
class Run:
    """One run that was read."""

    folder: Path
    result: DriftResult | QualityResult

    @property
    def pages(self) -> dict[str, Path]:
        """The reports that are there still: what they are, and the file."""
        found = {shown: self.folder / f"{name}.html" for name, shown in REPORTS.items()}
        return {shown: path for shown, path in found.items() if path.is_file()}


@dataclass(frozen=True)
class Unreadable:
    """A result that could not be read, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class KeptRuns:
    """All runs of a folder, the newest last; how many older ones were not read; those that could not be."""

    runs: tuple[Run, ...]
    unreadable: tuple[Unreadable, ...]
    n_older: int


def folder_of(directory: Path, result: DriftResult | QualityResult) -> Path:
    """Where the result and the reports of a run are kept."""
    kind = "drift" if isinstance(result, DriftResult) else "quality"
    until = result.windows[-1].until if isinstance(result, DriftResult) else result.until
    return directory / result.model / result.version / kind / until.astimezone(UTC).strftime("%Y-%m-%dT%H%M%SZ")


def read_runs(directory: Path) -> KeptRuns:
    """Reads the newest runs of each model version and kind. Nothing raises: what cannot be read is named."""
    runs: list[Run] = []
    unreadable: list[Unreadable] = []
    n_older = 0
    for kind, folders in _folders(directory):
        n_older += max(0, len(folders) - MOST_READ)
        for folder in folders[-MOST_READ:]:
            path = folder / RESULT_FILE
            try:
                result = _read(path, kind)
            except FileNotFoundError:  # a run that is being made, or failed before it had one
                continue
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                where = ".".join(map(str, first["loc"]))
                unreadable.append(Unreadable(path, f"{where}: {first['msg']}" if where else first["msg"]))
            except (OSError, ValueError) as error:
                unreadable.append(Unreadable(path, str(error)))
            else:
                runs.append(Run(folder, result))
    runs.sort(key=lambda run: (_until(run.result), str(run.folder)))
    return KeptRuns(tuple(runs), tuple(unreadable), n_older)


def delete_old_pages(directory: Path, keep: int = KEEP_PAGES) -> int:
    """Deletes the reports, HTML and JSON, of all but the newest runs of each model version and kind.

    Their result.json stays for the trends.

    Args:
        keep: of how many runs a model version and kind the reports stay; 0 deletes all.

    Returns:
        How many bytes that freed.

    Raises:
        OSError: where a file cannot be deleted.
    """
    freed = 0
    for _, folders in _folders(directory):
        for folder in folders[: len(folders) - keep] if keep < len(folders) else []:
            for name in REPORTS:
                for path in (folder / f"{name}.html", folder / f"{name}.json"):
                    if path.is_file():
                        freed += path.stat().st_size
                        path.unlink(missing_ok=True)
    return freed


def read_result(folder: Path) -> DriftResult | QualityResult:
    """The result of the run that is kept there.

    Raises:
        OSError: where there is none.
        ValueError: where it is none of this version's.
    """
    kinds = {str(kind): kind for kind in RESULTS}
    kind = kinds.get(folder.parent.name)
    if kind is None:
        raise ValueError(f"{folder} is no folder of a run: <model>/<version>/drift or quality/<until>")
    return _read(folder / RESULT_FILE, kind)


def _read(path: Path, kind: Kind) -> DriftResult | QualityResult:
    """Raises OSError, ValueError or ValidationError."""
    result = RESULTS[kind].model_validate_json(path.read_bytes())
    if isinstance(result, DriftResult) and not (result.windows and all(c.windows for c in result.columns)):
        raise ValueError("a run without a window")
    if isinstance(result, DriftResult) and not all(c.divergences for c in result.columns):
        raise ValueError("a column without a divergence")
    return result


def _folders(directory: Path) -> Iterator[tuple[Kind, Sequence[Path]]]:
    """The folders of each model version and kind, the oldest run first: their names are times."""
    for kind in RESULTS:
        for parent in sorted(directory.glob(f"*/*/{kind}/")):
            yield kind, sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _until(result: DriftResult | QualityResult) -> datetime:
    until = result.windows[-1].until if isinstance(result, DriftResult) else result.until
    return until if until.tzinfo else until.replace(tzinfo=UTC)
