"""Each overlay in turn, for the tests of manifests."""

import pytest

from deploy.kubernetes.manifests import overlays
from tests.unit.deploy.manifest_objects import Object, rendered


@pytest.fixture(params=overlays())
def objects(request) -> tuple[Object, ...]:
    """The objects of each overlay in turn."""
    return rendered(request.param)
