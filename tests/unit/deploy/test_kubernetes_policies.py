"""Who may talk to whom: the network policies, against the roles of the services."""

from deploy.node.config import NodeConfig
from deploy.node.shards import shards_of
from realloc.security.roles import ALLOWED, CLIENT_SERVICE
from tests.unit.deploy.manifest_objects import CONTROL, POD_KINDS, SHARDS, Object, of_kind

Flow = tuple[str, str, int]
"""From one workload to another, at a port."""
PROBED_PORTS = (2379, 2380, 2381, 3000, 3200, 4317, 7000, 7001, 7100, 7299, 7300, 8889, 9090, 29500)
"""A port of each kind, and some that nobody should reach."""


def expected_flows(config: NodeConfig) -> set[Flow]:
    """What the services do: `realloc.security.roles` says who calls whom."""
    parties = {"scheduler": "scheduler", "plan_search": "plan-search", "param_store": "param-store"}
    workload = parties | dict.fromkeys(SHARDS, "shards") | {"operator": "doctor"}
    flows: set[Flow] = {(each, "etcd", 2379) for each in workload.values()}
    flows |= {("etcd", "etcd", 2380), ("smoke", "scheduler", 7000)}
    flows |= {(each, "collector", 4317) for each in (*CONTROL, "shards")}
    flows |= {("collector", "tempo", 4317), ("grafana", "tempo", 3200)}
    flows |= {("prometheus", "collector", 8889), ("prometheus", "etcd", 2381)}
    flows |= {("grafana", "prometheus", 9090)}
    for service, roles in ALLOWED.items():
        kind = service.split(".")[2]
        servers = {"shard": SHARDS, "diagnostics": (*parties, *SHARDS)}.get(kind, (kind,))
        for caller in roles if service != CLIENT_SERVICE else ():
            for server in servers:
                ports = (7100, 7299) if server in SHARDS else (7000,)
                flows |= {(workload[str(caller)], workload[server], port) for port in ports}
    # Between shards NCCL, gloo and torch.distributed choose the ports.
    flows |= {("shards", "shards", port) for port in PROBED_PORTS}
    return flows


def test_policies_allow_what_is_needed_and_nothing_else(objects):
    """Between any two workloads exactly the ports are open that the services use."""
    first = NodeConfig(devices_per_node=8, trainer_config="t", generation_config="g")
    ports = [int(each.program.command[7].partition("=")[2]) for each in shards_of(first)]
    assert min(ports) >= 7100
    assert max(ports) <= 7299
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in of_kind(objects, *POD_KINDS)
    }
    policies = of_kind(objects, "NetworkPolicy")
    allowed = {
        (source, target, port)
        for source in labels
        for target in labels
        for port in PROBED_PORTS
        if is_open(policies, "Egress", labels[source], labels[target], port)
        and is_open(policies, "Ingress", labels[target], labels[source], port)
    }
    assert allowed == expected_flows(first)


def is_open(policies: list[Object], direction: str, own: Object, other: Object, port: int) -> bool:
    """What Kubernetes decides for one end: some policy that selects it allows the other end."""
    selecting = [
        each["spec"]
        for each in policies
        if direction in each["spec"]["policyTypes"] and selects(each["spec"]["podSelector"], own)
    ]
    if not selecting:
        return True
    side = "from" if direction == "Ingress" else "to"
    return any(
        any(is_peer(peer, other) for peer in rule.get(side, [{}]))
        and ("ports" not in rule or any(covers(each, port) for each in rule["ports"]))
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def is_peer(peer: Object, labels: Object) -> bool:
    """All pods here are of the namespace realloc."""
    namespaces = peer.get("namespaceSelector", {}).get("matchLabels", {})
    if namespaces.get("kubernetes.io/metadata.name", "realloc") != "realloc":
        return False
    return selects(peer.get("podSelector", {}), labels)


def covers(ports: Object, port: int) -> bool:
    if ports.get("protocol", "TCP") != "TCP":
        return False
    return bool(ports["port"] <= port <= ports.get("endPort", ports["port"]))


def selects(selector: Object, labels: Object) -> bool:
    """Kubernetes' label selectors, as far as the manifests use them."""
    exact = selector.get("matchLabels", {})
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in exact.items())
