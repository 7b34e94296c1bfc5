"""What kustomize needs a copy of, since it reads no file outside of its folder: `python -m deploy.copies` writes them.

tests/deploy/test_kubernetes.py sees that they are up to date.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"


def copies() -> dict[Path, str]:
    """The text of each copy."""
    configuration = (ROOT / "configuration.yaml").read_text(encoding="utf-8")
    return {
        KUBERNETES / "base" / "workload" / "configuration.yaml": configuration,
        KUBERNETES / "monitoring" / "rules.yaml": _prometheus_rule(ROOT / "monitoring" / "alerts" / "rules.yaml"),
    }


HOURLY, NIGHTLY = "> 3 * 3600", "> 3 * 86400"  # three times the schedule: of the monitor, of the jobs in a cluster


def _prometheus_rule(rules: Path) -> str:
    """The alert rules as the Prometheus Operator takes them, for jobs that look once a night."""
    text = rules.read_text(encoding="utf-8")
    if text.count(HOURLY) != 1:
        raise ValueError(f"{rules} has to have {HOURLY} once, for a monitor that says nothing any more")
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "tabserve"},
        "spec": yaml.safe_load(text.replace(HOURLY, NIGHTLY)),
    }
    made = yaml.safe_dump(rule, sort_keys=False, width=120)
    return f"# monitoring/alerts/{rules.name}, by `python -m deploy.copies`.\n{made}"


if __name__ == "__main__":
    for path, text in copies().items():
        path.write_text(text, encoding="utf-8")
