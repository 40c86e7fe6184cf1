"""Prefixes in etcd's terms."""

from hypothesis import given
from hypothesis import strategies as st

from realloc.coordination.etcd_messages import prefix_end


@given(prefix=st.binary(min_size=1, max_size=4), key=st.binary(max_size=6))
def test_the_end_of_a_prefix_bounds_exactly_its_keys(prefix: bytes, key: bytes) -> None:
    """A key lies in [prefix, prefix_end) if and only if it starts with the prefix."""
    end = prefix_end(prefix)
    inside = prefix <= key and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)
    assert prefix_end(b"") == b"\0"
