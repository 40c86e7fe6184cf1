"""The nouns of core and their messages in protos/ do not drift apart."""

from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import pytest

from realloc.api.shard.v1 import shard_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core import batch, layout, mesh, model, plan, settings, strategy, transfer

NOUNS: dict[str, Any] = {
    name: noun
    for module in (batch, layout, mesh, model, plan, settings, strategy, transfer)
    for name, noun in vars(module).items()
    if is_dataclass(noun)
}


def messages(module: ModuleType) -> list[Any]:
    return [each for each in module.DESCRIPTOR.message_types_by_name.values() if each.name in NOUNS]


@pytest.mark.parametrize(
    "message", [*messages(types_pb2), *messages(shard_pb2)], ids=lambda each: each.full_name
)
def test_every_field_of_a_noun_stands_in_its_message(message: Any) -> None:
    """A message named like a noun of core has all of the noun's fields, and no others."""
    noun = {each.name for each in fields(NOUNS[message.name])}
    assert {each.name for each in message.fields} == noun
