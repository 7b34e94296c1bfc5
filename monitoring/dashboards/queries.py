"""PromQL as the panels ask it. `$instance`, `$model` and `$version` are what was chosen above the panels."""

from typing import NamedTuple

# Requests for predictions; labels, probes and pages are none of them. The alert rules are of the same.
ANSWERING = "/predict|/predict/batch|/bento/predict"
OF_INSTANCE = 'instance=~"$instance"'
OF_ANSWERS = f'{OF_INSTANCE}, route=~"{ANSWERING}"'
OF_MODEL = 'model=~"$model", model_version=~"$version"'  # as the monitor says it
OF_TAG = f'{OF_INSTANCE}, model_version=~"${{model}}:${{version}}"'  # as the service does, where it is name:version
MODEL_LABELS = "model, model_version"


class Query(NamedTuple):
    """What a panel asks, and how its series are called."""

    expr: str
    legend: str


def rate(name: str, where: str = OF_INSTANCE, by: str = "") -> str:
    """A counter per second, added up over all but the labels `by`."""
    return f"sum{f' by ({by})' if by else ''} (rate({name}{{{where}}}[$__rate_interval]))"


def or_zero(expr: str, label: str = "") -> str:
    """A sum of a counter that has no series until it counts for the first time: 0 while a service answers.

    Where none answers there is nothing, which is not the same.
    """
    zero = f"0 * sum(tabserve_ready{{{OF_INSTANCE}}})"
    if label:
        zero = f'label_replace({zero}, "{label}", "none", "", "")'
    return f"{expr} or on() {zero}"


def mean(name: str, where: str = OF_INSTANCE) -> str:
    """Of a histogram; nothing where nothing was observed."""
    return f"{rate(f'{name}_sum', where)} / ({rate(f'{name}_count', where)} > 0)"


def percentile(name: str, share: float, where: str = OF_INSTANCE, window: str = "$__rate_interval") -> str:
    """Of a histogram, of all workers and replicas together."""
    return f"histogram_quantile({share}, sum by (le) (rate({name}_bucket{{{where}}}[{window}])))"


def percentiles(name: str, *shares: float, where: str = OF_INSTANCE, window: str = "$__rate_interval") -> list[Query]:
    return [Query(percentile(name, share, where, window), f"p{100 * share:g}") for share in shares]


def buckets(name: str) -> str:
    """What fell into each bucket of a histogram."""
    return f"sum by (le) (increase({name}_bucket{{{OF_INSTANCE}}}[$__rate_interval]))"


def found(name: str, *by: str, where: str = "") -> str:
    """A gauge of the monitor, once, whoever was asked for it: the monitor, a Pushgateway, or both."""
    return f"max by ({', '.join((MODEL_LABELS, *by))}) ({name}{{{_of_model(where)}}})"


def worst_of_range(n_series: int, name: str, *by: str, where: str = "") -> str:
    """The gauges of the monitor that were largest in the time shown; at each moment of it they are the same ones."""
    labels = ", ".join((MODEL_LABELS, *by))
    largest = f"max by ({labels}) (max_over_time({name}{{{_of_model(where)}}}[$__range] @ end()))"
    return f"{found(name, *by, where=where)} and topk({n_series}, {largest})"


def _of_model(where: str) -> str:
    return f"{OF_MODEL}, {where}" if where else OF_MODEL
