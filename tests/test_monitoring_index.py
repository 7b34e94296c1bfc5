"""The index page: what drifted in its headline, every run with its reports, and nothing that could break it."""

import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from monitoring_results import DAY, NOON, REGRESSION, Batch, batch, drift_of, keep, quality_of, reference_of

from monitoring.reports import runs
from monitoring.reports.index import write_index
from monitoring.reports.pictures import shares_picture, threshold_bar, trend_picture
from monitoring.reports.runs import delete_old_pages, folder_of, read_runs
from monitoring.reports.wording import drift_headline, number, percent, quality_headline, rate
from monitoring.results import DriftResult
from tabserve.contract import Contract, Feature

REFERENCE = reference_of(batch(4000, 0))
QUIET = drift_of([batch(2000, 1), batch(2000, 2)], REFERENCE)
DRIFTED = drift_of([batch(2000, 1, older_by=12), batch(2000, 2, older_by=12)], REFERENCE)


class Page(HTMLParser):
    """What a page has: its text, its tags, and every address in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.tags, self.addresses, self.open = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.text += " "
        self.addresses += [value for name, value in attrs if name in {"href", "src", "srcset", "action", "data"}]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data


def page_of(directory: Path) -> Page:
    return Page(write_index(directory))


def at(result: DriftResult, days: int) -> DriftResult:
    """The same run so many days earlier."""
    windows = [
        w.model_copy(update={"since": w.since - days * DAY, "until": w.until - days * DAY}) for w in result.windows
    ]
    return result.model_copy(update={"windows": tuple(windows)})


# --- what it says


def test_the_first_words_say_which_feature_drifted(tmp_path: Path) -> None:
    keep(tmp_path, DRIFTED)
    page = page_of(tmp_path)

    kl = DRIFTED.columns[0].divergences[-1].kl
    said = f"alarm 1 of 5 features drifted: age (KL {kl:.2f})"
    assert kl > 0.1
    assert said in page.text
    assert page.text.index(said) < 400
    assert page.text.index("2,000 rows") < page.text.index("Over the runs")


def test_a_column_in_alarm_stands_before_those_that_are_folded(tmp_path: Path) -> None:
    keep(tmp_path, DRIFTED)
    html = write_index(tmp_path).read_text()

    assert html.index("<b>age</b>") < html.index("6 columns that did not drift") < html.index("<b>income</b>")
    missing = f"{percent(DRIFTED.columns[0].missing_share)} <span"
    assert missing in html.split("<b>age</b>")[1].split("</tr>")[0]


def test_nothing_drifted_is_said_in_words(tmp_path: Path) -> None:
    keep(tmp_path, QUIET)
    page = page_of(tmp_path)

    assert "quiet nothing drifted" in page.text
    assert "7 columns that did not drift" in page.text


def test_too_few_rows_say_how_many_there_were(tmp_path: Path) -> None:
    result = drift_of([batch(120, 1), batch(120, 2)], REFERENCE)
    keep(tmp_path, result)

    assert result.level == "too few rows"
    assert "too few rows to say: 120 of 500" in page_of(tmp_path).text


def test_a_window_without_rows_and_a_reference_without_rows_are_pictures_too(tmp_path: Path) -> None:
    nothing = batch(0, 1)
    result = drift_of([batch(600, 2), nothing], REFERENCE)
    keep(tmp_path, result)

    assert DriftResult.model_validate_json(result.model_dump_json()) == result
    assert "too few rows to say: 0 of 500" in page_of(tmp_path).text
    assert shares_picture((0, 0, 0), (0, 0, 0)).count("<rect") == 3
    assert shares_picture((), ()) == ""


def test_the_headline_names_three_columns_and_counts_the_others() -> None:
    windows = [batch(2000, 1), batch(2000, 2)]
    for window in windows:
        window.rows[:, 0] += 12
        window.rows[:, 1] /= 3
        window.rows[:, 2] = 0
        window.rows[:, 3] = 1
    said = drift_headline(drift_of(windows, REFERENCE))

    assert said.startswith("4 of 5 features drifted: ")
    assert said.endswith(" and 1 more")
    assert said.count("(KL ") == 3


def test_a_first_window_in_alarm_may_be_drifting() -> None:
    said = drift_headline(drift_of([batch(2000, 1), batch(2000, 2, older_by=12)], REFERENCE))

    assert said.startswith("1 of 5 features may be drifting: age")


def test_quality_is_said_with_its_interval_and_its_baseline(tmp_path: Path) -> None:
    keep(tmp_path, DRIFTED)
    keep(tmp_path, quality_of(0.81, 900, level="alarm"))
    page = page_of(tmp_path)

    assert "quality fell: accuracy 0.81 (95 % interval 0.784 to 0.836; 0.95 at training)" in page.text
    assert "estimated before labels, 0.82" in page.text
    assert "900 of 1,800 predictions have a label (50 %)" in page.text


def test_a_segment_that_fares_worse_is_named() -> None:
    result = quality_of(0.81, 900, level="alarm")
    worse = result.segments[0].model_copy(update={"column": "city", "value": "Oslo"})
    result = result.model_copy(update={"segments": (*result.segments, worse)})

    assert quality_headline(result).endswith("; worst where city is Oslo")
    assert quality_headline(quality_of(0.9, 100, level="too few rows")) == "too few labels to say: 100 of 300"


def test_a_regression_without_confidence_has_a_page(tmp_path: Path) -> None:
    some = batch(3000, 1)
    keep(tmp_path, drift_of([some, some], reference_of(batch(4000, 0), REGRESSION), REGRESSION))
    keep(tmp_path, quality_of(12.5, 900, name="mae"))
    page = page_of(tmp_path)

    assert "mae 12.5" in page.text
    assert "mean confidence" not in page.text
    assert "estimated before labels" not in page.text


def test_no_run_yet_is_a_page(tmp_path: Path) -> None:
    assert "no run yet" in page_of(tmp_path / "new").text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (percent(0), "0 %"),
        (percent(0.0001), "below 0.1 %"),
        (percent(0.034), "3.4 %"),
        (percent(0.0999), "10 %"),
        (percent(1), "100 %"),
        (number(1234.5), "1,234"),
        (rate(12.34), "12.3 rows a second"),
        (rate(0.05), "3 rows a minute"),
        (rate(0.01), "36 rows an hour"),
        (rate(0), "0 rows a day"),
    ],
)
def test_numbers_have_units(said: str, expected: str) -> None:
    assert said == expected


# --- runs and their reports


def test_every_run_is_listed_the_newest_first_with_the_reports_that_are_there(tmp_path: Path) -> None:
    for days in range(14):
        keep(tmp_path, at(QUIET, days), *(["drift", "summary"] if days < 2 else ["summary"] if days == 2 else []))
    page = page_of(tmp_path)

    listed = re.findall(r"2026-11-\d\d 12:00 drift quiet", page.text)
    assert listed == [f"2026-11-{22 - days:02} 12:00 drift quiet" for days in range(14)]
    assert "4 older runs" in page.text
    assert len(page.addresses) == 5
    for address in page.addresses:
        assert (tmp_path / unquote(address)).is_file()
        assert not address.startswith(("/", "http"))


def test_a_version_that_has_no_newer_runs_is_folded_below_the_others(tmp_path: Path) -> None:
    keep(tmp_path, at(DRIFTED, 9).model_copy(update={"version": "0.9.0-000000"}))
    keep(tmp_path, QUIET)
    page = page_of(tmp_path)

    assert page.text.index("plans:1.0.0-abcdef") < page.text.index("plans:0.9.0-000000")
    assert "plans:0.9.0-000000, last run until 2026-11-13 12:00: 1 of 5 features drifted" in page.text


def test_a_result_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    keep(tmp_path, DRIFTED)
    torn, foreign, empty = (keep(tmp_path, at(QUIET, days)) / "result.json" for days in (1, 2, 3))
    torn.write_text(torn.read_text()[:300])
    foreign.write_text(quality_of(0.9, 900).model_dump_json())
    empty.write_text(QUIET.model_copy(update={"windows": ()}).model_dump_json())
    (keep(tmp_path, at(QUIET, 4)) / "result.json").unlink()
    page = page_of(tmp_path)

    assert "3 results could not be read" in page.text
    for path in (torn, foreign, empty):
        assert str(path.relative_to(tmp_path)) in page.text
    assert "1 of 5 features drifted: age" in page.text


def test_the_page_is_replaced_in_one_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first = write_index(tmp_path)
    before = first.stat().st_ino
    keep(tmp_path, DRIFTED)

    assert write_index(tmp_path) == first
    assert first.stat().st_ino != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "plans"]


def test_only_the_newest_runs_are_read_and_the_others_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in range(5):
        keep(tmp_path, at(QUIET, days))
    monkeypatch.setattr(runs, "MOST_READ", 3)

    assert len(read_runs(tmp_path).runs) == 3
    assert "2 older runs are in the folder" in page_of(tmp_path).text


def test_old_pages_are_deleted_by_version_and_kind_and_results_stay(tmp_path: Path) -> None:
    for days in range(4):
        keep(tmp_path, at(QUIET, days), "drift", "summary")
        keep(tmp_path, quality_of(0.9, 900, until=NOON - days * DAY), "quality")
    other = at(QUIET, 30).model_copy(update={"version": "0.9.0-000000"})
    keep(tmp_path, other, "drift")

    assert delete_old_pages(tmp_path, keep=3) > 0
    pages = sorted(str(path.relative_to(tmp_path / "plans")) for path in tmp_path.rglob("*.html"))
    assert not any("2026-11-19" in page for page in pages)
    assert len(pages) == 3 * 3 + 1
    assert len(list(tmp_path.rglob("result.json"))) == 9
    assert not list(tmp_path.rglob("2026-11-19*/drift.json"))
    assert delete_old_pages(tmp_path, keep=3) == 0
    assert delete_old_pages(tmp_path, keep=0) > 0
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_is_kept_under_the_end_of_its_newest_window_in_utc(tmp_path: Path) -> None:
    elsewhere = QUIET.windows[-1].until.astimezone().tzinfo
    result = QUIET.model_copy(
        update={"windows": tuple(w.model_copy(update={"until": w.until.astimezone(elsewhere)}) for w in QUIET.windows)}
    )

    assert folder_of(tmp_path, result) == tmp_path / "plans/1.0.0-abcdef/drift/2026-11-22T120000Z"


# --- what could break it


def test_names_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    evil = """</title></script><script>alert(1)</script><img src=x onerror="alert(2)">'{{ 7*7 }}'"""
    contract = Contract(
        features=(Feature(name=evil, kind="number", quantiles=(0.2, 0.5)),),
        task="binary",
        target="y",
        classes=("no", "yes"),
    )
    some = [Batch(batch(900, seed).rows[:, [2]], batch(900, seed).scores) for seed in (1, 2)]
    drifted = [Batch(one.rows + 5, one.scores) for one in some]
    keep(tmp_path, drift_of(drifted, reference_of(some[0], contract), contract))
    worse = quality_of(0.8, 900, level="alarm")
    segment = worse.segments[0].model_copy(update={"column": evil, "value": evil})
    keep(tmp_path, worse.model_copy(update={"segments": (*worse.segments, segment)}))
    page = page_of(tmp_path)

    assert page.text.count(evil) >= 5
    assert not {"script", "img"} & set(page.tags)


def test_it_needs_nothing_from_elsewhere_and_no_script(tmp_path: Path) -> None:
    keep(tmp_path, DRIFTED, "drift")
    html = write_index(tmp_path).read_text()

    assert "http" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not {"script", "link", "iframe"} & set(Page(tmp_path / "index.html").tags)
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_a_bar_ends_with_an_arrow_where_the_number_is_far_beyond() -> None:
    assert 'class="beyond"' not in threshold_bar(0.29, 0.1, "alarm")
    assert 'class="beyond"' in threshold_bar(0.31, 0.1, "alarm")
    assert 'class="bar unknown"' in threshold_bar(0.31, 0.1, 'too few"><rows')


@pytest.mark.parametrize(
    "values", [[], [0.0], [None], [0.3, None, float("nan"), 0.1, float("inf")], [0.5] * 4, [0.0, 0.0]]
)
def test_a_trend_of_whatever_numbers_is_a_picture(values: list[float | None]) -> None:
    for from_zero in (True, False):
        picture = trend_picture(values, title="<b>", low=values, high=values, beside=values, from_zero=from_zero)
        assert "nan" not in picture
        assert "inf" not in picture
        assert "&lt;b&gt;" in picture


def test_a_thousand_runs_make_a_page_in_little_time(tmp_path: Path) -> None:
    """Read once each and drawn as one line: hourly runs of six weeks."""
    for hours in range(1000):
        moved = timedelta(hours=hours)
        windows = [w.model_copy(update={"since": w.since - moved, "until": w.until - moved}) for w in QUIET.windows]
        keep(tmp_path, QUIET.model_copy(update={"windows": tuple(windows)}))
    page = write_index(tmp_path)

    assert page.stat().st_size < 1_000_000
    assert "500 older runs are in the folder" in page.read_text()
