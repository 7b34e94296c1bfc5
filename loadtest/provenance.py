"""Where a number came from: the commit, the machine, the versions of what was measured."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """The commit that is checked out, and whether anything but the documents differs from it."""
    found = _git("describe", "--always") or "unknown"
    return (
        f"{found} with changes" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs") else found
    )


def machine() -> str:
    """Processor, cores, memory, system."""
    processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return (
        f"{processor[1] if processor else platform.processor()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}"
    )


def versions(*packages: str) -> str:
    """Python's version, and those of some packages."""
    return ", ".join(
        (f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages))
    )


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    ).stdout.strip()
