"""Where the rows of a batch lie."""

from realloc.core.batch import BatchReference
from services.scheduler.columns import Columns


def reference(key: str, fields: tuple[str, ...], lengths: tuple[int, ...]) -> BatchReference:
    return BatchReference(
        address=f"host-{key}:1",
        key=key,
        fields=fields,
        rows=tuple(range(len(lengths))),
        lengths=lengths,
    )


def test_an_input_names_each_row_where_its_field_lies() -> None:
    """Fields that lie together travel together; rows keep the order that is asked for."""
    columns = Columns(4)
    columns.add(reference("a", ("tokens", "reward"), (3, 5)), [0, 2])
    columns.add(reference("b", ("tokens", "reward"), (7, 9)), [1, 3])
    columns.add(reference("c", ("values",), (1, 1, 1, 1)), [3, 2, 1, 0])
    assert columns.lengths == [3, 7, 5, 9]
    groups = columns.call_input(("tokens", "values", "reward"), [3, 0, 2]).groups
    assert [list(group.fields) for group in groups] == [["tokens", "reward"], ["values"]]
    assert [(r.key, list(r.rows), list(r.lengths)) for r in groups[0].references] == [
        ("b", [1], [9]),
        ("a", [0, 1], [3, 5]),
    ]
    assert [(r.key, list(r.rows)) for r in groups[1].references] == [("c", [0, 3, 1])]


def test_no_rows_still_name_their_fields() -> None:
    """A data rank without rows takes part with empty fields."""
    columns = Columns(1)
    columns.add(reference("a", ("tokens", "reward"), (3,)), [0])
    (group,) = columns.call_input(("tokens", "reward"), []).groups
    assert list(group.fields) == ["tokens", "reward"]
    assert not group.references
