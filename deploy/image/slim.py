"""Deletes what serving never loads from a virtual environment; run while the image is built.

    python slim.py /app/.venv

Every pattern must match something: one that no longer does belongs to a version of a package that is gone, and ends the
build, so that the list does not rot. Bytecode goes too; first_start.py writes that of what is loaded.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# Below site-packages, with the megabytes that each had on 2026-11-26.
UNUSED = (
    "**/tests",  # 45, of numpy, pandas, scipy, scikit-learn and others
    "**/test",
    "**/__pycache__",  # 136
    "pyarrow/libarrow_flight.so.*",  # 32, remote procedure calls
    "pyarrow/libarrow_python_flight.so*",
    "pyarrow/_flight.*",
    "pyarrow/flight.py",
    "pyarrow/_pyarrow_cpp_tests.*",
    "pyarrow/include",  # 6, to compile against
    "pyarrow/src",
    "pyarrow/*.pxi",
    "pyarrow/_azurefs.*",  # what the prediction log cannot be kept in
    "pyarrow/_gcsfs.*",
    "pyarrow/_hdfs.*",
    "onnxruntime/capi/libonnxruntime.so.*",  # 29, for programs in C; Python's module has all of it inside
    "onnxruntime/transformers",  # 5 together: what changes models, not what runs them
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "sklearn/datasets/data",  # tables and pictures to learn with
    "sklearn/datasets/descr",
    "sklearn/datasets/images",
    "scipy/stats/_sobol_direction_numbers.npz",  # 0.6, numbers that are not quite random
    "scipy/odr",
    "pygments/lexers/_*_builtins.py",  # 3 together, languages that no traceback is written in
    "pygments/lexers/[!_p]*.py",
    "numpy/_core/include",
    "numpy/_core/lib",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.tp",
    "**/*.[ch]",
    "**/*.cpp",
    "*.dist-info/RECORD",  # 1, the sums of files of which many have changed by now
)

SAME_BYTES = 100_000  # what is smaller is not worth a link


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for pattern in UNUSED:
        paths = list(packages.glob(pattern))
        if not paths:
            sys.exit(f"slim.py: nothing in {packages} is {pattern}; take it out of the list, or see where it went")
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # one pattern may have taken it with its folder
    libraries = [path for path in sorted(packages.rglob("*.so*")) if path.is_file()]
    link_what_is_the_same(libraries)
    subprocess.run(["strip", "--strip-unneeded", *filter(keeps_its_layout, libraries)], check=True)
    give_whole_seconds(packages.rglob("*.py"))
    (environment / ".lock").unlink()  # uv's, and everybody's to write to


def give_whole_seconds(sources: Iterable[Path]) -> None:
    """Bytecode is taken for sources of its second only, and a layer rounds what was written between two seconds up."""
    for path in sources:
        seconds = int(path.stat().st_mtime)
        os.utime(path, (seconds, seconds))


def link_what_is_the_same(libraries: list[Path]) -> None:
    """A wheel has no links: it brings a library under each of its names, and each wheel a Fortran of its own. 8 MB."""
    first: dict[bytes, Path] = {}
    for path in libraries:
        if path.stat().st_size < SAME_BYTES:
            continue
        other = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
        if other is not path:
            path.unlink()
            path.symlink_to(os.path.relpath(other, path.parent))


def keeps_its_layout(library: Path) -> bool:
    """Whether `strip` may take the table of symbols, which only a debugger reads: 50 MB together.

    Not where a wheel has others' libraries (`*.libs`), nor what was made to find them there: who did that moved parts
    of these files about, and strip is known to break such files.
    """
    if library.is_symlink() or library.parent.name.endswith(".libs"):
        return False
    said = subprocess.run(["readelf", "--dynamic", str(library)], capture_output=True, text=True, check=True).stdout
    return not re.search(r"R(UN)?PATH.*\.libs", said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
