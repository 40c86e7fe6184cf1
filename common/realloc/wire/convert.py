"""Dataclasses to protobuf messages and back, matched by field name.

    message = to_proto(layout, types_pb2.Layout)
    layout = from_proto(message, Layout)          # InvalidInput lists every problem
    layout = from_proto(request.target, Layout, "target")     # paths as ``target.devices``

| annotation of the dataclass field          | field of the message                           |
|--------------------------------------------|------------------------------------------------|
| str, int, float, bool, bytes               | the scalar of that kind                        |
| X | None                                   | a field with presence (``optional``, message)  |
| Enum with text values                      | enum; ``"megatron"`` is LAYOUT_KIND_MEGATRON   |
| dataclass                                  | message                                        |
| tuple[X, ...] (also Sequence, list)        | repeated                                       |
| Mapping[str, X], tuple[tuple[str, X], ...] | map<string, X>; the tuple form sorts by key    |
| NDArray of int32, int64, float32, …        | bytes, little-endian                           |
| float                                      | google.protobuf.Duration (seconds) where it is |
| float (seconds since 1970), datetime       | google.protobuf.Timestamp where it is          |

Rules. Every field of the dataclass stands in the message (else TypeError: our mistake); the
message may have more. A field that is absent, or an enum at UNSPECIFIED, takes the dataclass's
default, and is a problem where there is none. `InvalidInput` raised by a dataclass's own
checks gets the field path in front. Parents of a wrong field are not constructed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from realloc.core.errors import InvalidInput, Problem, raise_problems

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_ABSENT = object()
_MAPPING = get_origin(Mapping[str, str])
_SEQUENCES = (tuple, list, get_origin(Sequence[str]))


def to_proto(value: Any, message_class: type[M]) -> M:
    """A message with the fields of a dataclass.

    Raises:
        TypeError: the message has no such field, or the field is of another kind.
    """
    message = message_class()
    _fill(message, value)
    return message


def from_proto(message: Message, data_class: type[T], path: str = "") -> T:
    """A dataclass with the fields of a message; `path` stands in front of each problem's path.

    Raises:
        InvalidInput: every field that is absent, out of range or refused by the dataclass.
    """
    problems: list[Problem] = []
    value = _read_message(message, data_class, path, problems)
    raise_problems(problems)
    assert isinstance(value, data_class)
    return value


def prefixed(problems: Sequence[Problem], path: str) -> list[Problem]:
    """The same problems, one level further out."""
    return [Problem(_join(path, problem.path), problem.reason) for problem in problems]


# ---- to a message ----


def _fill(message: Message, value: Any) -> None:
    by_name: Any = message.DESCRIPTOR.fields_by_name
    for field in fields(value):
        if field.name not in by_name:
            raise TypeError(f"{message.DESCRIPTOR.full_name} has no field {field.name}")
        item = getattr(value, field.name)
        if item is not None:
            _set(message, by_name[field.name], item)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if _is_map(field):
        _set_map(getattr(message, field.name), field, dict(value))
    elif field.is_repeated:
        _set_repeated(getattr(message, field.name), field, value)
    elif field.message_type is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        _fill_submessage(target, value)
    else:
        setattr(message, field.name, _scalar(field, value))


def _set_repeated(target: Any, field: FieldDescriptor, values: Any) -> None:
    if field.message_type is not None:
        for value in values:
            _fill_submessage(target.add(), value)
    elif field.enum_type is not None:
        target.extend(_scalar(field, value) for value in values)
    else:
        target.extend(values)


def _set_map(target: Any, field: FieldDescriptor, values: Mapping[str, Any]) -> None:
    item = _map_value(field)
    for key, value in values.items():
        if item.message_type is not None:
            # Reading a missing key of a message map creates its entry.
            _fill_submessage(target[key], value)
        else:
            target[key] = _scalar(item, value)


def _fill_submessage(target: Any, value: Any) -> None:
    if isinstance(target, Timestamp) and isinstance(value, datetime):
        target.FromDatetime(value)
    elif isinstance(target, Duration | Timestamp):
        # Whole and fraction apart: a float of 1e18 nanoseconds would lose the last digits.
        fraction, whole = math.modf(round(value, 9))
        target.seconds, target.nanos = int(whole), round(fraction * 1e9)
    else:
        _fill(target, value)


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if field.type != FieldDescriptor.TYPE_BYTES or value.ndim != 1:
            raise TypeError(f"{field.full_name} takes no {value.ndim}-D array")
        return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    if isinstance(value, Enum):
        return value.value if field.enum_type is None else _number(field.enum_type, value)
    return value


def _number(enum: EnumDescriptor, value: Enum) -> int:
    name = _enum_prefix(enum) + str(value.value).upper().replace("-", "_")
    if name not in enum.values_by_name:
        raise TypeError(f"{enum.full_name} has no value {name}")
    return enum.values_by_name[name].number


# ---- from a message ----


def _read_message(
    message: Message, data_class: type[T], path: str, problems: list[Problem]
) -> T | None:
    before = len(problems)
    by_name: Any = message.DESCRIPTOR.fields_by_name
    hints = _hints(data_class)  # type: ignore[arg-type]  # mypy: "a class is not hashable"
    values: dict[str, Any] = {}
    for field in fields(data_class):  # type: ignore[arg-type]  # a dataclass
        if field.name not in by_name:
            raise TypeError(f"{message.DESCRIPTOR.full_name} has no field {field.name}")
        item = _read_field(
            message, by_name[field.name], hints[field.name], _join(path, field.name), problems
        )
        if item is not _ABSENT:
            values[field.name] = item
        elif _is_optional(hints[field.name]) and not _has_default(field):
            values[field.name] = None
        elif not _has_default(field):
            problems.append(Problem(_join(path, field.name), _absence(by_name[field.name])))
    if len(problems) > before:
        return None
    try:
        return data_class(**values)
    except InvalidInput as error:
        problems += prefixed(error.problems, path)
        return None


def _read_field(
    message: Message, field: FieldDescriptor, hint: Any, path: str, problems: list[Problem]
) -> Any:
    kind = _without_none(hint)
    value = getattr(message, field.name)
    if _is_map(field):
        return _read_map(value, field, kind, path, problems)
    if field.is_repeated:
        return _read_repeated(value, field, get_args(kind)[0], path, problems)
    if field.has_presence and not message.HasField(field.name):
        return _ABSENT
    return _read_item(value, field, kind, path, problems)


def _read_map(
    values: Any, field: FieldDescriptor, kind: Any, path: str, problems: list[Problem]
) -> Any:
    item = _map_value(field)
    as_pairs = get_origin(kind) is tuple
    item_kind = get_args(get_args(kind)[0] if as_pairs else kind)[1]
    found = {
        key: _read_item(values[key], item, item_kind, f"{path}[{key!r}]", problems)
        for key in sorted(values)
    }
    return tuple(found.items()) if as_pairs else found


def _read_repeated(
    values: Any, field: FieldDescriptor, kind: Any, path: str, problems: list[Problem]
) -> tuple[Any, ...]:
    if field.message_type is None and field.enum_type is None:
        return tuple(values)
    items = []
    for index, value in enumerate(values):
        item = _read_item(value, field, kind, f"{path}[{index}]", problems)
        if item is _ABSENT:
            problems.append(Problem(f"{path}[{index}]", _absence(field)))
        items.append(item)
    return tuple(items)


def _read_item(
    value: Any, field: FieldDescriptor, kind: Any, path: str, problems: list[Problem]
) -> Any:
    if isinstance(value, Timestamp) and kind is datetime:
        return _read_datetime(value, path, problems)
    if isinstance(value, Duration | Timestamp):
        return value.seconds + value.nanos / 1e9
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_message(value, kind, path, problems)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _read_enum(value, field, kind, path, problems)
    if get_origin(kind) is np.ndarray:
        return _read_array(value, kind, path, problems)
    return value


def _read_datetime(value: Timestamp, path: str, problems: list[Problem]) -> datetime | None:
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError):
        problems.append(Problem(path, f"is {value.seconds} s since 1970, beyond all calendars"))
        return None


def _read_enum(
    value: Any, field: FieldDescriptor, kind: type[Enum], path: str, problems: list[Problem]
) -> Any:
    known = {str(member.value).upper().replace("-", "_"): member for member in kind}
    if field.enum_type is None:
        name = str(value).upper().replace("-", "_")
    elif value == 0:
        return _ABSENT
    else:
        number = field.enum_type.values_by_number.get(value)
        name = "" if number is None else number.name.removeprefix(_enum_prefix(field.enum_type))
    if name in known:
        return known[name]
    choices = ", ".join(str(member.value) for member in kind)
    problems.append(Problem(path, f"is {value!r}, which is not one of {choices}"))
    return None


def _read_array(value: bytes, kind: Any, path: str, problems: list[Problem]) -> Any:
    """A read-only view of the bytes where the machine is little-endian."""
    dtype = np.dtype(get_args(get_args(kind)[1])[0])
    if len(value) % dtype.itemsize:
        reason = f"has {len(value)} bytes, not a multiple of {dtype.itemsize} ({dtype.name})"
        problems.append(Problem(path, reason))
        return None
    return np.frombuffer(value, dtype.newbyteorder("<")).astype(dtype, copy=False)


# ---- what annotations and descriptors say ----


@cache
def _hints(data_class: type[Any]) -> dict[str, Any]:
    return get_type_hints(data_class)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        if len(options) != 1:
            raise TypeError(f"only X | None can travel, not {kind}")
        return options[0]
    return kind


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    entry: Any = field.message_type
    value: FieldDescriptor = entry.fields_by_name["value"]
    return value


def _enum_prefix(enum: EnumDescriptor) -> str:
    zero: str = enum.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def _absence(field: FieldDescriptor) -> str:
    if field.enum_type is None:
        return "is not given"
    prefix = _enum_prefix(field.enum_type)
    names = [value.name.removeprefix(prefix).lower() for value in field.enum_type.values[1:]]
    return f"is not given; one of {', '.join(names)}"


def _join(path: str, inner: str) -> str:
    if not path or not inner or inner.startswith("["):
        return path + inner
    return f"{path}.{inner}"
