"""What is kept of a run of the load test: a page, tables, and a line among those of other runs."""

import csv
import re
from pathlib import Path

import pytest
from conftest import BUILT_IN, Service, TrainedModels
from locusts import Done, faking, finish, ports, start
from test_loadtest import CONSTANT, PATIENT, Stalling

from loadtest import pages
from loadtest.timeline import Scrape, percentile

RUNS = "# Runs\n\n<!-- runs -->\n\n| when | ... |\n|---|---|\n| earlier | x |\n\n<!-- end of runs -->\n\nThe end.\n"


class Kept:
    """A run that has ended, and what it left."""

    def __init__(self, folder: Path, done: Done) -> None:
        self.done = done
        (self.folder,) = (folder / "results").iterdir()
        self.page = (folder / "page.md").read_text()

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def report(self) -> str:
        return (self.folder / "report.html").read_text()


def options(folder: Path) -> list[str]:
    folder.mkdir()
    (folder / "page.md").write_text(RUNS)
    return ["--results", str(folder / "results"), "--runs-page", str(folder / "page.md")]


@pytest.fixture(scope="module")
def runs(
    services: dict[str, Service], models: TrainedModels, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Kept]:
    """Runs of one process and of several, and one against something that is no service of ours and fails, together."""
    folder = tmp_path_factory.mktemp("runs")
    load = ["--host", services[BUILT_IN].url, *CONSTANT, "--arrival-rate", "50", "-u10", "-t5s"]
    with faking(Stalling(60.0)) as stalled:
        started = {
            "one": start(models.home, *load, "--slo", PATIENT, *options(folder / "one")),
            "two": start(models.home, *load, "--slo", PATIENT, "--processes", "2", *ports(), *options(folder / "two")),
            "missed": start(
                models.home,
                "--host",
                stalled,
                *CONSTANT,
                "--arrival-rate",
                "50",
                "-t3s",
                "-s1",
                *options(folder / "missed"),
            ),
        }
        return {name: Kept(folder / name, finish(process)) for name, process in started.items()}


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_run_leaves_its_requests_from_second_to_second_with_what_the_service_said_of_itself(
    runs: dict[str, Kept], name: str
) -> None:
    kept = runs[name]
    timeline = kept.rows("timeline.csv")
    before = [0.0, *(float(row["seconds"]) for row in timeline)]
    counted = sum(
        float(row["requests_per_second"]) * (float(row["seconds"]) - start)
        for row, start in zip(timeline, before, strict=False)
    )
    total = kept.rows("requests.csv")[-1]

    assert kept.done.code == 0, kept.done.log
    assert total["Name"] == "Aggregated"
    assert int(total["Request Count"]) == kept.done.requests
    assert counted == pytest.approx(kept.done.requests, abs=2)
    assert len(timeline) >= (4 if name == "one" else 2)
    for column in ("p50_ms", "p99_ms", "rows_per_batch", "cpu_cores"):
        assert any(float(row[column] or 0) > 0 for row in timeline), column
    assert all(float(row["memory_mb"]) > 50 for row in timeline)
    assert all(float(row["queued_rows"]) >= 0 for row in timeline)


def test_the_page_of_a_run_says_what_was_asked_and_what_became_of_it(
    runs: dict[str, Kept], models: TrainedModels
) -> None:
    report = runs["one"].report

    assert models.tag(BUILT_IN) in report
    assert "OneRow: open loop, 50 a second" in report
    assert "SLO met: errors were 0 %" in report
    assert "<svg" in report
    assert re.search(r"Commit [0-9a-f]{7}", report)
    assert "http" not in re.sub(
        r"http://(127\.0\.0\.1|www\.w3\.org|purl\.org|creativecommons\.org)\S*|https://matplotlib.org/", "", report
    )
    assert f"report: {runs['one'].folder / 'report.html'}" in runs["one"].done.log


def test_the_page_of_a_run_that_missed_its_objectives_says_so_and_what_failed(runs: dict[str, Kept]) -> None:
    kept = runs["missed"]

    assert kept.done.code == 1
    assert 'objectives <span class="missed">missed</span>' in kept.report
    assert "no answer within 1 s after the end of the run" in kept.report
    assert kept.rows("timeline.csv")[-1]["memory_mb"] == ""  # what stands there has no /metrics
    assert any("no answer within 1 s" in row["Error"] for row in kept.rows("failures.csv"))
    assert "| **missed** |" in kept.page


@pytest.mark.parametrize(("name", "processes"), [("one", ""), ("two", ", 2 processes")])
def test_a_run_adds_one_line_below_those_of_others(
    runs: dict[str, Kept], models: TrainedModels, name: str, processes: str
) -> None:
    kept = runs[name]
    start, _, rest = kept.page.partition("| earlier | x |\n")
    line, _, end = rest.partition("\n")
    cells = [cell.strip() for cell in line.strip("|").split("|")]

    assert start + "| earlier | x |\n\n" + end.lstrip("\n") == RUNS
    assert len(cells) == 13
    assert re.match(r"[0-9a-f]{7}", cells[1])
    assert "cores" in cells[2]
    assert "bentoml 1." in cells[3]
    assert cells[4] == models.tag(BUILT_IN)
    assert re.fullmatch(rf"OneRow: open loop, 50 a second, \d+ s{processes}", cells[5])
    assert cells[6:8] == [str(kept.done.requests), "0"]
    assert cells[-1] == "met"


def test_what_cannot_be_kept_is_said_and_the_verdict_stays(services: dict[str, Service], tmp_path: Path) -> None:
    in_the_way = tmp_path / "results"
    in_the_way.write_text("a file")
    load = ["--host", services[BUILT_IN].url, "OneRow", "-u1", "-t1s", "--slo", PATIENT]

    done = finish(
        start(tmp_path / "home", *load, "--results", str(in_the_way), "--runs-page", str(tmp_path / "page.md"))
    )

    assert done.code == 0
    assert "the results of this run cannot be kept: " in done.log
    assert "SLO met: errors were 0 %" in done.log


def test_rows_are_added_in_order_and_a_page_without_a_place_for_them_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(RUNS)

    pages.append_row(page, "runs", "| second | y |")
    pages.append_row(page, "runs", "| third | z |")

    assert page.read_text() == RUNS.replace("| x |\n", "| x |\n| second | y |\n| third | z |\n")
    with pytest.raises(ValueError, match="no marks <!-- others -->"):
        pages.append_row(page, "others", "|")


def test_counters_of_a_service_that_began_anew_count_from_zero() -> None:
    before = Scrape('tabserve_refused_rows_total{reason="a"} 5.0\ntabserve_refused_rows_total{reason="b"} 7.0\n', 0.0)
    now = Scrape(
        'tabserve_refused_rows_total{reason="a"} 9.0\ntabserve_refused_rows_total{reason="b"} 2.0\nother 1.0\n', 1.0
    )

    assert now.increase("tabserve_refused_rows_total", before) == 4 + 2
    assert now.total("tabserve_refused_rows_total") == 11
    assert now.total("tabserve_queued_rows") is None


def test_a_percentile_is_the_time_within_which_that_share_of_answers_came() -> None:
    assert percentile({10: 98, 50: 1, 900: 1}, 0.99) == 50
    assert percentile({10: 98, 50: 1, 900: 1}, 0.5) == 10
    assert percentile({}, 0.5) is None
