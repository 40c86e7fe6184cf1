"""A member's JSON."""

import json

import pytest

from realloc.coordination.membership import Member
from realloc.core.errors import InvalidInput

MEMBER = Member(
    kind="generation",
    name="generation-3",
    address="10.0.0.1:5000",
    incarnation="b3",
    host="node-1",
    device=3,
    node=1,
    labels={"role": "rollout"},
)


def test_a_member_comes_back_from_its_json() -> None:
    """What is stored is plain JSON, and reads as the same member; members can be hashed."""
    assert json.loads(MEMBER.to_json())["device"] == 3
    assert Member.from_json(MEMBER.to_json()) == MEMBER
    assert hash(Member.from_json(MEMBER.to_json())) == hash(MEMBER)
    assert MEMBER.key == "/realloc/members/generation/generation-3"


def test_fields_of_a_later_version_are_ignored() -> None:
    """A newer process can be seen by an older one, and one without the optional fields, too."""
    raw = {**json.loads(MEMBER.to_json()), "zone": "z"}
    assert Member.from_json(json.dumps(raw).encode()) == MEMBER
    for name in ("device", "node", "labels"):
        del raw[name]
    assert Member.from_json(json.dumps(raw).encode()).device is None


@pytest.mark.parametrize("value", [b"\xff", b"{", b"[]", b'"member"'])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    """Anything but a JSON object is an input error."""
    with pytest.raises(InvalidInput, match="JSON"):
        Member.from_json(value)


def test_all_wrong_fields_are_named_at_once() -> None:
    """Missing fields and wrong types are reported together, with what was wanted."""
    raw = {"kind": 1, "name": "n", "device": True, "labels": {"a": 1}, "host": "h"}
    with pytest.raises(InvalidInput) as raised:
        Member.from_json(json.dumps(raw).encode())
    paths = [problem.path for problem in raised.value.problems]
    assert paths == ["kind", "address", "incarnation", "device", "labels"]
    assert "device: is True, wanted int or NoneType" in str(raised.value)
