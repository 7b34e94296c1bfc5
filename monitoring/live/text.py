"""What was found of a model version's quality, as lines that a person reads in ten seconds."""

from monitoring.results import QualityMetric, QualityResult, QualitySegment
from monitoring.verdict import ENOUGH_LABELS
from tabserve.history.stats import duration

MOST_SEGMENTS = 20  # of a column; the worst are the first

_SAYS = {
    "too few rows": "too few labels to say",
    "quiet": "quiet",
    "warning": "WARNING",
    "alarm": "ALARM",
}


def text_of(result: QualityResult) -> str:
    """The verdict, then what it rests on."""
    whole, *parts = result.segments
    worst = max(result.segments, key=lambda segment: segment.level == result.level)  # the first at that level
    where = f"{worst.column} = {worst.value}: " if worst.column else ""
    lines = [f"{_SAYS[result.level]}: {result.model}:{result.version}: {where}{worst.because}", *_counted(result), ""]
    if whole.metrics:
        n_baseline = f" ({result.n_baseline:,} rows)" if result.n_baseline else ""
        lines += [f"{'metric':<12}{'now':>10}  {'95 % interval':<20}  at training{n_baseline}"]
        lines += [_metric(metric) for metric in whole.metrics]
    lines += [f"left out: {sentence}" for sentence in whole.left_out]
    lines += _estimated(result)
    if result.n_sampled < result.n_labelled:
        exact = "" if result.estimated_accuracy is None else "accuracy and F1 are of all labels, "
        lines.append(f"{exact}the {'other ' if exact else ''}metrics of a sample of {result.n_sampled:,} labelled rows")
    for column in dict.fromkeys(segment.column for segment in parts):
        lines += ["", *_segments(str(column), [segment for segment in parts if segment.column == column])]
    return "\n".join(lines)


def _counted(result: QualityResult) -> list[str]:
    since, until = (moment.strftime("%Y-%m-%d %H:%M") for moment in (result.since, result.until))
    came = ", ".join(f"{name} {duration(seconds)}" for name, seconds in result.label_delay_seconds.items())
    labels = (
        f"{result.n_labelled:,} labels ({result.coverage:.2%} have one{f', which came after {came}' if came else ''})"
    )
    lines = [f"{since} to {until} UTC: {result.n_rows:,} predictions, {labels}"]
    if result.n_unusable_labels:
        lines.append(f"{result.n_unusable_labels:,} labels or scores are none that this model can have: left out")
    return lines


def _metric(metric: QualityMetric) -> str:
    interval = f"{metric.low:.4g} to {metric.high:.4g}"
    baseline = "" if metric.baseline is None else f"{metric.baseline:.4g}"
    return f"{metric.name:<12}{metric.value:>10.4g}  {interval:<20}  {baseline}".rstrip()


def _estimated(result: QualityResult) -> list[str]:
    if result.estimated_accuracy is None:
        return []
    lines = [f"estimated accuracy of all predictions, from their scores alone: {result.estimated_accuracy:.4g}"]
    accuracy = next((metric for metric in result.segments[0].metrics if metric.name == "accuracy"), None)
    if accuracy is None or result.estimate_of_labelled is None:
        return [*lines, "  no label came that it could be checked against"]
    checked = f"  of those with a label it said {result.estimate_of_labelled:.4g}, and {accuracy.value:.4g} were right"
    verdict = {
        True: "the estimate holds",
        False: "the scores are not calibrated now: do not trust the estimate",
        None: f"fewer than {ENOUGH_LABELS} labels cannot say whether it holds",
    }[result.estimate_holds]
    return [*lines, f"{checked}: {verdict}"]


def _segments(column: str, segments: list[QualitySegment]) -> list[str]:
    """One line each, with the metric that decides: the first."""
    shown = segments[:MOST_SEGMENTS]
    name = next((segment.metrics[0].name for segment in shown if segment.metrics), "")
    width = max(12, *(len(str(segment.value)) for segment in shown))
    lines = [f"{f'by {column}':<{width}}{'labels':>10}{name:>10}  {'95 % interval':<20}  at training"]
    for segment in shown:
        line = f"{segment.value!s:<{width}}{segment.n_labelled:>10,}"
        if segment.metrics:
            line += _metric(segment.metrics[0].model_copy(update={"name": ""})).removeprefix(" " * 12)
        if segment.level != "quiet":
            line = f"{line:<{width + 55}}  {_SAYS[segment.level]}"
        lines.append(line)
        if segment.level in {"warning", "alarm"}:
            lines.append(f"  {segment.because}")
    if len(segments) > len(shown):
        lines.append(f"and {len(segments) - len(shown)} more, none of which fares worse")
    return lines
