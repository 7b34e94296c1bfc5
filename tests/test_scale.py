"""The measurement of how a drift verdict grows with the log, in small."""

from pathlib import Path

import pytest
from conftest import BUILT_IN, TrainedModels, environment

from monitoring.soundness.scale import MOST_MEGABYTES, MOST_SECONDS, judged, write_log


def test_many_rows_are_judged_within_the_bounds_and_memory_hardly_grows_with_them(
    models: TrainedModels, tmp_path: Path
) -> None:
    contract, tag = models.load(BUILT_IN).contract, models.tag(BUILT_IN)
    found = []
    for n_rows in (4_000, 200_000):
        folder = tmp_path / str(n_rows)
        write_log(folder, contract, tag, n_rows)
        found.append(judged(folder.as_uri(), environment(models.home)))
    few, many = found

    for one, n_rows in ((few, 2_000), (many, 100_000)):  # of a window, which ends a few seconds later
        assert int(one.said.split("\n")[1].split(" rows")[0].replace(",", "")) == pytest.approx(n_rows, rel=0.01)
        assert "quiet: 30 columns" in one.said
    assert many.code == 1  # scores that are chance are none of this model
    assert many.seconds < MOST_SECONDS
    assert many.megabytes < few.megabytes + 200 < MOST_MEGABYTES
