"""Endpoints become one gRPC target, or a clear error."""

import pytest

from realloc.coordination.etcd_channel import channel_target
from realloc.core.errors import InvalidInput


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        (["127.0.0.1:2379"], "ipv4:127.0.0.1:2379"),
        (["http://10.0.0.1:2379", "10.0.0.2:2379/"], "ipv4:10.0.0.1:2379,10.0.0.2:2379"),
        (["[::1]:2379", "[::2]:2379"], "ipv6:[::1]:2379,[::2]:2379"),
        (["etcd.realloc.svc:2379"], "dns:///etcd.realloc.svc:2379"),
    ],
)
def test_endpoints_become_a_target(endpoints: list[str], target: str) -> None:
    """Addresses of one family, or one name, are one target."""
    assert channel_target(endpoints) == target


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ([], "none: give IP addresses"),
        (["a:1", "b:1"], "one DNS name that resolves to every member"),
        (["127.0.0.1:1", "[::1]:1"], "of one family"),
        (["localhost"], "is not host:port"),
        ([":2379"], "is not host:port"),
        (["127.0.0.1:http"], "is not host:port"),
    ],
)
def test_endpoints_that_do_not_fit_are_refused(endpoints: list[str], reason: str) -> None:
    """No endpoint, several names, mixed families and missing ports say what to give."""
    with pytest.raises(InvalidInput, match=reason):
        channel_target(endpoints)
