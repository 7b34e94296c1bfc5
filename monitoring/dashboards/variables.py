"""What can be chosen above the panels: the Prometheus, the model and its version, and the replica."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from monitoring.dashboards.panels import DATASOURCE

Variable = dashboard.DatasourceVariable | dashboard.QueryVariable

# Of the gauges of the monitor each model version has this one.
_JUDGED = "tabserve_monitor_last_success_timestamp_seconds"
_ANSWERED = "tabserve_predictions_total"


def of_service() -> list[Variable]:
    """Models and versions as the service counts its answers, in one label: name:version."""
    return [
        _datasource(),
        _query("model", "Model", f"label_values({_ANSWERED}, model_version)", picked="/^([^:]+):/"),
        _query(
            "version",
            "Version",
            f'label_values({_ANSWERED}{{model_version=~"${{model}}:.*"}}, model_version)',
            picked="/:(.+)$/",
        ),
        _instance(),
    ]


def of_monitor() -> list[Variable]:
    """Models and versions as the monitor tells of them, in a label each."""
    return [
        _datasource(),
        _query("model", "Model", f"label_values({_JUDGED}, model)"),
        _query("version", "Version", f'label_values({_JUDGED}{{model=~"$model"}}, model_version)'),
        _instance(),
    ]


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _instance() -> dashboard.QueryVariable:
    return _query("instance", "Replica", "label_values(tabserve_ready, instance)")


def _query(name: str, label: str, query: str, picked: str = "") -> dashboard.QueryVariable:
    """Any number of the values of a label, at first all of them; `picked` is the part of a value that counts."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": query, "refId": f"{name} of the panels"})
        .regex(picked)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )
