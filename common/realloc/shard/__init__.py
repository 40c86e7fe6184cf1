"""What every process that owns a device shares: batches, data sources, ordered calls."""
