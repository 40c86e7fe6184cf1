"""Where each field of each row of an iteration's batch lies. Holds references, never data."""

from collections.abc import Sequence

from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import BatchReference


class Columns:
    """Fields of one iteration's batch by global row number."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.lengths: list[int] = [0] * num_rows
        """Tokens of each row, known once ``tokens`` is."""
        self._places: dict[str, list[tuple[BatchReference, int]]] = {}

    def add(self, reference: BatchReference, rows: Sequence[int]) -> None:
        """Row i of a shard's batch is row ``rows[i]`` of the whole batch."""
        assert len(rows) == len(reference.rows)
        for name in reference.fields:
            places = self._places.setdefault(name, [(reference, -1)] * self.num_rows)
            for local, row in zip(reference.rows, rows, strict=True):
                places[row] = (reference, local)
        if "tokens" in reference.fields:
            for length, row in zip(reference.lengths, rows, strict=True):
                self.lengths[row] = length

    def call_input(self, fields: Sequence[str], rows: Sequence[int]) -> trainer_pb2.CallInput:
        """Where to pull these fields of these rows, in this order."""
        groups: dict[tuple[tuple[str, int], ...], list[str]] = {}
        for name in fields:
            places = self._places[name]
            key = tuple(
                (places[row][0].address + "\n" + places[row][0].key, places[row][1]) for row in rows
            )
            groups.setdefault(key, []).append(name)
        return trainer_pb2.CallInput(
            groups=[
                trainer_pb2.FieldGroup(
                    fields=names, references=self._references(names[0], names, rows)
                )
                for names in groups.values()
            ]
        )

    def _references(
        self, name: str, fields: Sequence[str], rows: Sequence[int]
    ) -> list[types_pb2.BatchReference]:
        found: list[types_pb2.BatchReference] = []
        for row in rows:
            reference, local = self._places[name][row]
            assert local >= 0, f"row {row} has no {name}"
            if not found or (found[-1].address, found[-1].key) != (
                reference.address,
                reference.key,
            ):
                found.append(
                    types_pb2.BatchReference(
                        address=reference.address, key=reference.key, fields=fields
                    )
                )
            found[-1].rows.append(local)
            found[-1].lengths.append(self.lengths[row])
        return found
