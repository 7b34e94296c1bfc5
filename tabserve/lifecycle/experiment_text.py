"""What an A/B test has found, as lines that a person reads in ten seconds."""

from datetime import timedelta

from tabserve.lifecycle.experiment import BROKEN, Experiment, units


def text_of(found: Experiment) -> str:
    """What was found, as a page that a person can read. Before the horizon no effect is shown: it would be a peek."""
    lines = [f"{found.verdict.upper()}: {found.because}", f"{found.test.name}: {found.plan}"]
    if found.since is not None:
        lines.append(f"rows from {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC")
        if found.plan.planned_at > found.since + timedelta(hours=1):
            lines.append("it was planned after its first row: what was seen before may have chosen the horizon")
    lines.append(
        f"the rows of one {found.key} count as one" if found.key
        else "rows are taken as independent: the log does not have what the choice is sticky by"
        if found.test.by else "rows are taken as independent: the choice is not sticky"
    )  # fmt: skip
    if found.n_keyless:
        lines.append(f"{found.n_keyless:,} rows have no {found.key} and are left out")
    lines += ["", f"{'':<12}{'rows':>10}{units(found):>24}{'with an outcome':>18}"]
    lines += [
        f"{name:<12}{arm.n_rows:>10,}{arm.n_units:>24,}{arm.n_with_outcome:>18,}"
        for name, arm in (("control", found.control), ("challenger", found.challenger))
    ]
    if found.split_p is not None:
        lines.append(f"split {found.test.share:g} %: p = {found.split_p:.2g}")
        if found.split_p < BROKEN and not found.is_broken:
            lines.append("  an unlikely split, which rows of few keys may have: count the keys before you believe it")
    return "\n".join(lines)
