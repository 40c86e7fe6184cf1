"""All shards of one node: a trainer and a generation replica per device, kept running."""
