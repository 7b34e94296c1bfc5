"""The whole way on one machine, shortened: service, monitor, Prometheus, Alertmanager, traffic."""
