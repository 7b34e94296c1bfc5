"""Figures as SVG: the same figure is the same text."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def drawn() -> Iterator[tuple[Any, io.StringIO]]:
    """Gives matplotlib's pyplot, and a text that holds what was drawn as SVG once the block has ended."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tabserve"
    from matplotlib import pyplot as plt

    picture = io.StringIO()
    yield plt, picture
    plt.tight_layout()
    plt.savefig(picture, format="svg", metadata={"Date": None})
    plt.close()
