"""make demo, without its two minutes of traffic: what it says where a program is missing, and at its end."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from monitoring_results import batch, drift_of, keep, reference_of

from monitoring.demo import __main__ as demo
from monitoring.demo.programs import Rung
from monitoring.reports.runs import Run


def test_a_missing_program_is_named_and_the_demo_goes_on_and_ends_with_what_drifted_and_where_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drifted = drift_of([batch(1000, seed, older_by=15) for seed in (1, 2)], reference_of(batch(4000, 0)))
    monkeypatch.setattr(demo, "find_program", lambda _: None)
    for name in ("serving", "watching"):
        monkeypatch.setattr(demo, name, lambda _: contextlib.nullcontext(SimpleNamespace(port=1)))
    monkeypatch.setattr(demo, "send_traffic", lambda *_: keep(tmp_path / "reports", drifted))
    monkeypatch.setattr(demo, "drift_was_found", lambda *_: True)
    reported: list[Run] = []
    monkeypatch.setattr(demo, "make_report", lambda run, *_: reported.append(run))

    with contextlib.ExitStack() as stack:
        assert demo.demonstrate(stack, tmp_path, Rung()) == 0

    said = capsys.readouterr().out
    for name in ("prometheus", "prometheus-alertmanager"):
        assert f"{name} is not installed (apt-get install {name}): the demo goes on without it" in said
    assert "the monitor found: 1 of 5 features drifted: age" in said
    assert "alerts that fired: none, prometheus and prometheus-alertmanager would have told of them" in said
    assert (tmp_path / "reports/index.html").as_uri() in said
    assert [run.result for run in reported] == [drifted]
    assert "age" in (tmp_path / "reports/index.html").read_text()
