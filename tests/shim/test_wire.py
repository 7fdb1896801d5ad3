"""The codec against the protobuf library, both ways, for every message that both know."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import any_pb2, empty_pb2, timestamp_pb2
from google.protobuf.descriptor import FieldDescriptor as Field

from carrel.proto import (
    event_types_pb2,
    introspection_types_pb2,
    mount_pb2,
    runc_options_pb2,
    shim_v2_pb2,
    shim_v3_pb2,
    task_events_pb2,
    task_pb2,
    ttrpc_events_pb2,
)
from carrel.shim.schema import SCHEMAS
from carrel.shim.wire import WireError, decode, encode

MODULES = (event_types_pb2, introspection_types_pb2, mount_pb2, runc_options_pb2, shim_v2_pb2,
           shim_v3_pb2, task_events_pb2, task_pb2, ttrpc_events_pb2, any_pb2, empty_pb2,
           timestamp_pb2)
#: described by the tests' own client (kit.py) or by no .proto of ours
ELSEWHERE = {"Status", "KeyValue", "Request", "Response", "Extension", "BootstrapParams",
             "BootstrapResult"}


def classes() -> list[tuple[str, Any]]:
    found = []
    for module in MODULES:
        for name in module.DESCRIPTOR.message_types_by_name:
            if name in SCHEMAS:
                found.append((name, getattr(module, name)))
    return found


CLASSES = classes()


def test_every_schema_is_compared() -> None:
    compared = {name for name, _ in CLASSES}
    ours = {name for name in SCHEMAS if not name.startswith(("v1.", "v2."))}
    assert ours - compared == ELSEWHERE


def fill(message: Any, chance: random.Random, depth: int = 0) -> None:
    """Random values, among them the edges of each type."""
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.2 or depth > 3:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name).update({"k": "v", "": "empty", "ü": "\u2028"})
        elif field.message_type is not None:
            for _ in range(chance.randint(0, 3) if field.is_repeated else 1):
                inner = getattr(message, field.name)
                fill(inner.add() if field.is_repeated else inner, chance, depth + 1)
                if not field.is_repeated:
                    inner.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend(value_of(field, chance) for _ in range(3))
        else:
            setattr(message, field.name, value_of(field, chance))


def value_of(field: Any, chance: random.Random) -> Any:
    kind = field.type
    if kind == Field.TYPE_STRING:
        return chance.choice(["", "a", "ünïcödé", "x" * 300])
    if kind == Field.TYPE_BYTES:
        return chance.choice([b"", b"\0\xff", bytes(range(256))])
    if kind == Field.TYPE_BOOL:
        return chance.random() < 0.5
    if kind in (Field.TYPE_INT32, Field.TYPE_ENUM):
        edges = [0, 1, -1, -2**31, 2**31 - 1]
        return chance.choice([0, 1, 5] if kind == Field.TYPE_ENUM else edges)
    if kind == Field.TYPE_INT64:
        return chance.choice([0, 1, -1, -2**63, 2**63 - 1])
    if kind == Field.TYPE_UINT32:
        return chance.choice([0, 127, 128, 2**32 - 1])
    if kind == Field.TYPE_UINT64:
        return chance.choice([0, 1, 2**64 - 1])
    raise AssertionError(f"no values for type {kind} of {field.full_name}")


def plain(message: Any) -> dict[str, Any]:
    """A message of the library in the shape of ours."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = dict(value)
        elif field.message_type is not None:
            if field.is_repeated:
                result[field.name] = [plain(item) for item in value]
            else:
                result[field.name] = plain(value) if message.HasField(field.name) else None
        else:
            result[field.name] = list(value) if field.is_repeated else value
    return result


@pytest.mark.parametrize(("name", "kind"), CLASSES,
                         ids=[k.DESCRIPTOR.full_name for _, k in CLASSES])
def test_both_ways(name: str, kind: Any) -> None:
    schema = SCHEMAS[name]
    assert {f.name for f in schema.fields} == {f.name for f in kind.DESCRIPTOR.fields}
    for seed in range(25):
        message = kind()
        fill(message, random.Random(seed))
        ours = decode(schema, message.SerializeToString())
        assert ours == plain(message)
        assert kind.FromString(encode(schema, ours)) == message


def test_unknown_fields_are_skipped() -> None:
    wide = shim_v2_pb2.StateResponse(id="c", bundle="/b", pid=7, terminal=True, exec_id="e")
    wide.exited_at.seconds = 5
    assert decode(SCHEMAS["WaitRequest"], wide.SerializeToString()) == {"id": "c", "exec_id": "/b"}
    fixed = b"\x0a\x01c" + b"\xfd\x01\x01\x02\x03\x04" + b"\xf9\x01" + b"\0" * 8
    assert decode(SCHEMAS["StartRequest"], fixed) == {"id": "c", "exec_id": ""}


@pytest.mark.parametrize("data", [
    b"\x0a", b"\x0a\x05abc", b"\xff" * 11, b"\x0b", b"\x08\x01", b"\x0a\x02\xff\xfe",
], ids=["no length", "short", "long number", "group", "wrong type", "not utf-8"])
def test_bad_bytes_are_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(SCHEMAS["StartRequest"], data)


def test_random_bytes_never_surprise() -> None:
    chance = random.Random(7)
    for _ in range(3000):
        data = chance.randbytes(chance.randint(0, 40))
        for name in ("CreateTaskRequest", "UpdateTaskRequest", "ForwardRequest", "v2.MemoryStat"):
            try:
                decode(SCHEMAS[name], data)
            except WireError:
                pass


def test_nesting_is_bounded() -> None:
    from carrel.shim.wire import Field as Row
    from carrel.shim.wire import Schema
    loop = Schema("Loop")
    loop.add(Row(1, "inner", "Loop", False, loop))
    data = b""
    for _ in range(100):
        from carrel.shim.wire import varint
        data = b"\x0a" + varint(len(data)) + data
    with pytest.raises(WireError, match="deep"):
        decode(loop, data)


def test_a_misspelt_field_is_an_error() -> None:
    with pytest.raises(KeyError, match="pidd"):
        encode(SCHEMAS["StartResponse"], {"pidd": 1})
