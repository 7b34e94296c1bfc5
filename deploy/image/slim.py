"""Deletes what serving never loads from a virtual environment; run while the image is built.

    python slim.py /app/.venv

Every pattern must match something: one that no longer does belongs to a version of a package that is gone, and ends the
build, so that the list does not rot. Bytecode goes too; first_start.py writes that of what is loaded.
"""

import shutil
import subprocess
import sys
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
    "pyarrow/libarrow_python.so",  # 2.4 each: a wheel has no links, so it has the file three times
    "pyarrow/libarrow_python.so.*.*.*",
    "pyarrow/_pyarrow_cpp_tests.*",
    "pyarrow/include",  # 6, to compile against
    "pyarrow/src",
    "onnxruntime/capi/libonnxruntime.so.*",  # 29, for programs in C; Python's module has all of it inside
    "onnxruntime/transformers",  # 5 together: what changes models, not what runs them
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "sklearn/datasets/data",  # tables and pictures to learn with
    "sklearn/datasets/descr",
    "sklearn/datasets/images",
    "numpy/_core/include",
    "numpy/_core/lib",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
)

# Libraries with a table of symbols that only a debugger reads, 45 MB together. Not those in *.libs: who made these
# wheels has moved parts of them about, and strip is known to break such files.
WITH_SYMBOLS = (
    "pyarrow/*.so*",  # 23
    "uvloop/*.so",  # 12
    "aiohttp/**/*.so",  # 5
    "yaml/*.so",  # 2
    "scipy/io/_fast_matrix_market/*.so",  # 2
    "scipy/optimize/_highspy/*.so",  # 1
    "multidict/*.so",
    "frozenlist/*.so",
    "propcache/*.so",
    "wrapt/*.so",
    "httptools/**/*.so",
)


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for pattern in UNUSED:
        for path in found(packages, pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # one pattern may have taken it with its folder
    libraries = [str(path) for pattern in WITH_SYMBOLS for path in found(packages, pattern)]
    subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)


def found(packages: Path, pattern: str) -> list[Path]:
    paths = list(packages.glob(pattern))
    if not paths:
        sys.exit(f"slim.py: nothing in {packages} is {pattern}; take it out of the list, or see where it went")
    return paths


if __name__ == "__main__":
    main(Path(sys.argv[1]))
