"""OpenTelemetry and structlog set-up; the names of all spans, metrics and attributes."""
