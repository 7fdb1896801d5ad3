"""Protocol buffers for the shim, from a table of field numbers.

The shim speaks some forty small messages.  A protobuf library would cost it
more memory than everything else together, so this module encodes and decodes
them from :mod:`carrel.shim.schema`.  A message is a plain ``dict``:

* decoding fills in the default of every known field (``""``, ``0``, ``[]``...),
  an absent sub-message is ``None``; unknown fields are skipped, as the format asks;
* encoding leaves out fields that are absent or have their default.

>>> from carrel.shim.schema import SCHEMAS
>>> encode(SCHEMAS["StartRequest"], {"id": "c", "exec_id": ""})
b'\\n\\x01c'
>>> decode(SCHEMAS["StartRequest"], b'\\n\\x01c')
{'id': 'c', 'exec_id': ''}
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UINT64 = (1 << 64) - 1
_DEFAULTS: dict[str, object] = {"s": "", "b": b"", "u": 0, "u32": 0, "i": 0, "i32": 0, "?": False,
                                "d": 0.0}
_WIRE_TYPE = {"s": _BYTES, "b": _BYTES, "u": _VARINT, "u32": _VARINT, "i": _VARINT,
              "i32": _VARINT, "?": _VARINT, "d": _FIXED64, "map": _BYTES}
#: messages in messages: more than any of ours nests, little enough for any stack
_MAX_DEPTH = 16


class WireError(ValueError):
    """The bytes are not a message of this schema."""


class Field:
    """One row of the table."""

    __slots__ = ("key", "kind", "name", "number", "repeated", "schema")

    def __init__(self, number: int, name: str, kind: str, repeated: bool,
                 schema: Schema | None) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.repeated = repeated
        self.schema = schema
        packed = repeated and _WIRE_TYPE.get(kind, _BYTES) != _BYTES
        wire_type = _BYTES if schema is not None or packed else _WIRE_TYPE[kind]
        self.key = varint(number << 3 | wire_type)


class Schema:
    """One message type: its fields by number, in the order of the numbers."""

    __slots__ = ("by_number", "fields", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.fields: list[Field] = []
        self.by_number: dict[int, Field] = {}

    def add(self, field: Field) -> None:
        self.fields.append(field)
        self.by_number[field.number] = field


def varint(value: int) -> bytes:
    """Base-128 of a number; a negative one as its 64-bit two's complement."""
    if value < 0x80 and value >= 0:
        return bytes((value,))
    value &= _UINT64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        try:
            byte = data[at]
        except IndexError:
            raise WireError("number cut off") from None
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _UINT64, at
        shift += 7
        if shift > 63:
            raise WireError("number too long")


def encode(schema: Schema, message: Message) -> bytes:
    """The bytes of a message; names that the schema lacks are an error."""
    parts: list[bytes] = []
    known = 0
    for field in schema.fields:
        if field.name not in message:
            continue
        known += 1
        value = message[field.name]
        if value is None:
            continue
        if field.kind == "map":
            for key, item in value.items():
                entry = _scalar_entry(1, key) + _scalar_entry(2, item)
                parts += (field.key, varint(len(entry)), entry)
        elif field.schema is not None:
            for item in value if field.repeated else (value,):
                body = encode(field.schema, item)
                parts += (field.key, varint(len(body)), body)
        elif field.repeated:
            _encode_repeated(parts, field, value)
        elif value:
            _encode_scalar(parts, field, value)
    if known != len(message):
        names = {f.name for f in schema.fields}
        raise KeyError(f"{schema.name} has no field {', '.join(sorted(set(message) - names))}")
    return b"".join(parts)


def _scalar_entry(number: int, text: str) -> bytes:
    raw = text.encode()
    return bytes((number << 3 | _BYTES,)) + varint(len(raw)) + raw


def _encode_scalar(parts: list[bytes], field: Field, value: Any) -> None:
    parts.append(field.key)
    kind = field.kind
    if kind == "s":
        value = value.encode("utf-8", "surrogateescape")
    if kind in ("s", "b"):
        parts += (varint(len(value)), value)
    elif kind == "d":
        parts.append(struct.pack("<d", value))
    else:
        parts.append(varint(int(value)))


def _encode_repeated(parts: list[bytes], field: Field, values: Any) -> None:
    if not values:
        return
    if field.kind in ("s", "b"):
        for value in values:
            _encode_scalar(parts, field, value)
        return
    body = b"".join(varint(int(value)) for value in values)  # packed, proto3's default
    parts += (field.key, varint(len(body)), body)


def decode(schema: Schema, data: bytes, depth: int = 0) -> Message:
    """The message in these bytes. Raises :class:`WireError`."""
    if depth > _MAX_DEPTH:
        raise WireError("messages nested too deep")
    message: Message = {}
    for field in schema.fields:
        if field.repeated:
            message[field.name] = []
        elif field.kind == "map":
            message[field.name] = {}
        elif field.schema is not None:
            message[field.name] = None
        else:
            message[field.name] = _DEFAULTS[field.kind]
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        known = schema.by_number.get(key >> 3)
        value, at = _read_value(data, at, key & 7)
        if known is not None:
            _store(message, known, value, key & 7, depth)
    return message


def _read_value(data: bytes, at: int, wire_type: int) -> tuple[Any, int]:
    if wire_type == _VARINT:
        return _read_varint(data, at)
    if wire_type == _BYTES:
        size, at = _read_varint(data, at)
    elif wire_type == _FIXED64:
        size = 8
    elif wire_type == _FIXED32:
        size = 4
    else:
        raise WireError(f"wire type {wire_type} is not supported")
    if at + size > len(data):
        raise WireError("field cut off")
    return data[at:at + size], at + size


def _store(message: Message, field: Field, value: Any, wire_type: int, depth: int) -> None:
    name = field.name
    if field.kind == "map":
        _expect(field, wire_type, _BYTES)
        entry = decode(_ENTRY, value, depth + 1)
        message[name][entry["key"]] = entry["value"]
    elif field.schema is not None:
        _expect(field, wire_type, _BYTES)
        item = decode(field.schema, value, depth + 1)
        if field.repeated:
            message[name].append(item)
        else:
            message[name] = item
    elif field.repeated:
        if wire_type == _BYTES and _WIRE_TYPE[field.kind] == _VARINT:
            at = 0
            while at < len(value):
                number, at = _read_varint(value, at)
                message[name].append(_convert(field, number))
        else:
            _expect(field, wire_type, _WIRE_TYPE[field.kind])
            message[name].append(_convert(field, value))
    else:
        _expect(field, wire_type, _WIRE_TYPE[field.kind])
        message[name] = _convert(field, value)


def _expect(field: Field, wire_type: int, wanted: int) -> None:
    if wire_type != wanted:
        raise WireError(f"field {field.name} has wire type {wire_type}, not {wanted}")


def _convert(field: Field, value: Any) -> Any:
    kind = field.kind
    if kind == "s":
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise WireError(f"field {field.name} is not UTF-8") from None
    if kind == "u32":
        return value & 0xFFFFFFFF
    if kind == "i32":
        value &= 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value
    if kind == "i":
        return value - (1 << 64) if value >> 63 else value
    if kind == "?":
        return value != 0
    if kind == "d":
        return struct.unpack("<d", value)[0]
    return value


_ENTRY = Schema("entry of a map")
_ENTRY.add(Field(1, "key", "s", False, None))
_ENTRY.add(Field(2, "value", "s", False, None))
