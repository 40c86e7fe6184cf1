"""What pods may do: nothing but their work."""

import pytest

from deploy.kubernetes.manifests import (
    overlays,
)
from tests.unit.deploy.manifest_objects import containers, of_kind, rendered


def test_pods_are_confined(objects):
    """No root, no privileges, no writable image, no token of the API; every container has
    requests and a limit of memory."""
    for name, pod, container in containers(objects):
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["serviceAccountName"] != "default", name
        confined = container["securityContext"]
        assert confined["allowPrivilegeEscalation"] is False, name
        assert confined["readOnlyRootFilesystem"] is True, name
        assert confined["capabilities"]["drop"] == ["ALL"], name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", overlays())
def test_only_gpu_shards_may_lock_memory(overlay):
    """IPC_LOCK is given to shards on GPUs and to nobody else."""
    holders = {
        name
        for name, _, container in containers(rendered(overlay))
        if container["securityContext"]["capabilities"].get("add")
    }
    assert holders == ({"shards"} if overlay != "cpu" else set())
    for _, _, container in containers(rendered(overlay)):
        assert container["securityContext"]["capabilities"].get("add", ["IPC_LOCK"]) == ["IPC_LOCK"]


def test_accounts_have_no_rights(objects):
    """There is an account for each workload, without any role."""
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    for name, pod, _ in containers(objects):
        assert pod["serviceAccountName"] in accounts, name
    assert not [each for each in objects if "Role" in each["kind"]]
