"""Grafana's dashboards: service, batching, and model and drift. `python -m monitoring.dashboards` writes them as JSON.

Only that command needs grafana-foundation-sdk (`make .venv/dev.installed`); Grafana reads the JSON files beside it.
"""
