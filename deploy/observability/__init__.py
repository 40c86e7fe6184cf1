"""What shows a running cluster to people: collector, Prometheus, Tempo, Grafana."""
