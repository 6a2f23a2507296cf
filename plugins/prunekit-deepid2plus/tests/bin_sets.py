"""Writes verification sets token by token, as Python's own writers of protocols 0 to 5 do, without them."""

import struct
from typing import Any

PROTOCOLS = range(6)
_BATCH = 1000  # entries that are appended at once
Memo = dict[object, int]
_ESCAPED = ("\\", "\0", "\n", "\r", "\x1a")


class Tokens(bytes):
    """Tokens that stand in a set as they are."""


def set_bytes(content: object, protocol: int) -> bytes:
    """Return tuples of two, lists, bytes, booleans and ``Tokens`` in a protocol; equal bytes are stored once."""
    body = _value(content, protocol, {}) + b"."
    if protocol < 2:
        return body
    frame = b"\x95" + struct.pack("<Q", len(body)) if protocol >= 4 else b""
    return b"\x80" + bytes([protocol]) + frame + body


def text(value: str, protocol: int) -> bytes:
    """Return the token of a text."""
    if protocol > 0:
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    for character in _ESCAPED:
        value = value.replace(character, f"\\u{ord(character):04x}")
    return b"V" + value.encode("raw-unicode-escape") + b"\n"


def _value(value: Any, protocol: int, memo: Memo) -> bytes:
    if isinstance(value, Tokens):
        return bytes(value)
    if isinstance(value, bool):
        return (b"\x89", b"\x88")[value] if protocol >= 2 else b"I0%d\n" % value
    if isinstance(value, bytes):
        known = value in memo
        return _get(memo[value], protocol) if known else _bytes(value, protocol, memo) + _put(memo, value, protocol)
    if isinstance(value, tuple):
        first, second = (_value(part, protocol, memo) for part in value)
        return _pair(first, second, protocol) + _put(memo, id(value), protocol)
    begin = (b"]" if protocol else b"(l") + _put(memo, id(value), protocol)
    parts = [_value(part, protocol, memo) for part in value]
    if protocol == 0:
        return begin + b"".join(part + b"a" for part in parts)
    batches = (b"(" + b"".join(parts[start : start + _BATCH]) + b"e" for start in range(0, len(parts), _BATCH))
    return begin + b"".join(batches)


def _bytes(value: bytes, protocol: int, memo: Memo) -> bytes:
    if protocol >= 3:
        return (b"C" + bytes([len(value)]) if len(value) < 256 else b"B" + struct.pack("<I", len(value))) + value
    function = _once("encode", b"c_codecs\nencode\n", protocol, memo)
    first = text(value.decode("latin-1"), protocol) + _put(memo, object(), protocol)
    arguments = _pair(first, _once("latin1", text("latin1", protocol), protocol, memo), protocol)
    return function + arguments + _put(memo, object(), protocol) + b"R"


def _once(key: str, token: bytes, protocol: int, memo: Memo) -> bytes:
    return _get(memo[key], protocol) if key in memo else token + _put(memo, key, protocol)


def _pair(first: bytes, second: bytes, protocol: int) -> bytes:
    return first + second + b"\x86" if protocol >= 2 else b"(" + first + second + b"t"


def _put(memo: Memo, key: object, protocol: int) -> bytes:
    number = memo[key] = len(memo)
    if protocol >= 4:
        return b"\x94"
    return _numbered(number, b"p", b"q", b"r", protocol)


def _get(number: int, protocol: int) -> bytes:
    return _numbered(number, b"g", b"h", b"j", protocol)


def _numbered(number: int, plain: bytes, short: bytes, long: bytes, protocol: int) -> bytes:
    if protocol == 0:
        return plain + b"%d\n" % number
    return short + bytes([number]) if number < 256 else long + struct.pack("<I", number)
