"""A report as files: Evidently's page with our words at its top, and JSON; or a page of ours where it cannot be made.

Evidently's `save_html` and `save_json` write nothing where they are given a Path, and its JSON has bare NaN: so both
are written here.
"""

import html
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from uuid_utils import uuid7

MOST_WORDS = 600  # characters of what a library says in its error

_STYLE = """
.tabserve{font:15px/1.5 system-ui,sans-serif;color:#1d2733;background:#fff;border-left:6px solid #1f6feb;
margin:16px;padding:4px 18px;overflow-wrap:anywhere}
.tabserve h1{font-size:21px;margin:8px 0 4px}.tabserve p{margin:5px 0}.tabserve li{margin:2px 0}
.tabserve .notice{background:#fff3cd;color:#3d2f00;padding:5px 10px;font-weight:600}
.tabserve table{border-collapse:collapse}.tabserve td,.tabserve th{padding:2px 12px 2px 0;text-align:left}
"""
_OUR_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"></head><body>
</body></html>
"""


class NoReportError(Exception):
    """Why a report cannot be made of these rows, as a sentence."""


@dataclass
class About:
    """What is said of a report at its top, and in its JSON."""

    title: str
    verdict: str
    facts: dict[str, Any]
    """For the JSON: model, version, window, numbers of rows."""
    lines: list[str] = field(default_factory=list)
    """Sentences on the page: whose rows these are, and how the numbers were made."""
    notice: str | None = None
    """What must not be overlooked: that this is a sample."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    table: Sequence[tuple[str, str]] = ()
    """Numbers of ours: name and value in words."""


def write_report(folder: Path, name: str, about: About, make: Callable[[], Any]) -> list[Path]:
    """Writes `<name>.html` and `<name>.json`; whatever `make` raises becomes what stands in them.

    Args:
        make: imports Evidently, and returns the Snapshot of a report that was run.

    Returns:
        Both paths.

    Raises:
        OSError: where the folder cannot be written.
    """
    found: dict[str, Any] = {}
    failed: str | None = None
    page = ""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    said = io.StringIO()
    # Evidently, pandas and numpy warn of each constant column, hundreds of lines.
    with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(said), redirect_stderr(said):
        warnings.simplefilter("ignore")
        try:
            snapshot = make()
            page, found = snapshot.get_html_str(as_iframe=False), snapshot.dict()
        except NoReportError as error:
            failed = str(error)
        except ImportError as error:
            failed = f"Evidently cannot be imported ({error}): make .venv/monitoring.installed"
        except Exception as error:  # noqa: BLE001  # Evidently raises what it likes; a report must not end a run
            failed = f"Evidently failed with {type(error).__name__}: {str(error)[:MOST_WORDS]}"
    if failed is not None:
        page = _OUR_PAGE
    content = {
        "report": about.title,
        "verdict": about.verdict,
        **about.facts,
        "sample": about.notice,
        "left_out": dict(about.left_out),
        "notes": list(about.notes),
        "evidently": _evidently_version(),
        **({"error": failed} if failed is not None else {}),
        **found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.html", folder / f"{name}.json"]
    title = html.escape(f"{about.title}: {about.verdict}")
    titled = page.replace("<head>", f"<head><title>{title}</title>", 1)  # Evidently's page has none
    write_whole(paths[0], with_banner(titled, banner(about, failed)))
    write_whole(paths[1], json.dumps(strict(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def with_banner(page: str, text: str) -> str:
    """The page with a text right behind its <body>, or at its very start where it has none."""
    before, body, after = page.partition("<body>")
    return f"{before}{body}\n{text}\n{after}" if body else text + page


def banner(about: About, failed: str | None) -> str:
    """What stands at the top of a report, as HTML; nothing in it is trusted."""
    parts = [f"<h1>{html.escape(about.title)}: {html.escape(about.verdict)}</h1>"]
    if about.notice:
        parts.append(f'<p class="notice">{html.escape(about.notice)}</p>')
    if failed is not None:
        parts.append(f'<p class="notice">This report could not be made: {html.escape(failed)}</p>')
    parts += [f"<p>{html.escape(line)}</p>" for line in about.lines]
    if about.table:
        cells = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in about.table)
        parts.append(f"<table>{cells}</table>")
    for title, items in (
        ("Left out", [f"{name}: {why}" for name, why in about.left_out.items()]),
        ("Of the rows", list(about.notes)),
    ):
        if items:
            listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
            parts.append(f"<p><b>{title}</b></p><ul>{listed}</ul>")
    return f'<style>{_STYLE}</style><div class="tabserve">{"".join(parts)}</div>'


def write_whole(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the one before or this one, and never half of it."""
    unfinished = path.with_name(f".{uuid7()}{path.suffix}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def strict(value: Any) -> Any:
    """The value as strict JSON has it: no NaN and no infinity, which become null, and keys that are text."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return strict(value.tolist())
    if isinstance(value, list | tuple | set):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, Enum):
        return strict(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _evidently_version() -> str | None:
    try:
        return version("evidently")
    except PackageNotFoundError:
        return None
