"""etcd behind a small Store interface: leases, watches, elections, membership."""
