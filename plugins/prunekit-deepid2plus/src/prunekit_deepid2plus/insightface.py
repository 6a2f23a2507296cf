"""Verification sets of InsightFace: .bin files with the images of pairs, and whether each pair shows one person.

Such a file is a pickle of (encoded images, booleans). It is never unpickled: its tokens are read here, and those that
lists of bytes and booleans need are the only ones understood, so nothing in a file can be run. This module must not
know training.
"""

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import DataError
from prunekit_deepid2plus.images import decode
from prunekit_deepid2plus.pairs import Pairs

FOLDS = 10
"""As InsightFace evaluates: the pairs in order, in ten parts."""

_LIMIT = 2**30  # bytes; ten times the sets that are usual
_MOST_IMAGES = 100_000  # seven times the sets that are usual; in a hostile file two bytes can name one again


def read_pairs(path: Path, size: tuple[int, int]) -> tuple[Tensor, Pairs]:
    """Read a verification set.

    Args:
        path: the .bin file.
        size: rows and columns to bring the images to, cropped in the middle to that aspect.

    Returns:
        uint8 images ``[2 pairs, 3, rows, columns]``, and the pairs: images 0 and 1, 2 and 3, ...

    Raises:
        DataError: the file is missing, is no such set, or has an image that cannot be read.
    """
    encoded, shows_one = read_bin(path)
    images, _ = decode(encoded, size, lambda number: f"{path}, image {number + 1}", "take the original file")
    same = torch.tensor(shows_one)
    first = torch.arange(0, len(images), 2)
    # The first folds have one pair more where the number of pairs is no multiple of ten.
    sizes = [len(same) // FOLDS + (fold < len(same) % FOLDS) for fold in range(FOLDS)]
    return images, Pairs(first, first + 1, same, torch.arange(FOLDS).repeat_interleave(torch.tensor(sizes)))


def read_bin(path: Path) -> tuple[list[bytes], list[bool]]:
    """Read the encoded images of a .bin file, two for each pair, and whether each pair shows one person.

    Raises:
        DataError: naming the file, for everything else.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, expected a .bin file of at most {_LIMIT:,}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a .bin file of InsightFace") from error
    try:
        content = _interpret(data)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is no .bin file of InsightFace, or a damaged one: {reason}") from error
    if not (isinstance(content, tuple) and len(content) == 2 and all(isinstance(part, list) for part in content)):  # noqa: PLR2004 - a pair
        raise DataError(f"{path} holds no pair of lists, expected a .bin file of InsightFace: images, and who is same")
    images, same = content
    if not (all(isinstance(image, bytes) for image in images) and all(isinstance(value, bool) for value in same)):
        raise DataError(f"{path} holds other things than encoded images and booleans; write it with bytes and bool")
    fits = len(images) == 2 * len(same) and FOLDS <= len(same) <= _MOST_IMAGES // 2
    if not fits or len(set(same)) < 2:  # noqa: PLR2004 - both kinds
        raise DataError(
            f"{path} has {len(images):,} images for {len(same):,} pairs, {sum(same):,} of one person; "
            f"expected two images a pair, {FOLDS} to {_MOST_IMAGES // 2:,} pairs, and both kinds"
        )
    return images, same


def _interpret(data: bytes) -> Any:
    """Return what the tokens of a pickle say, if they say lists, tuples, bytes and booleans alone."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in _PUSHES:
            stack.append(_PUSHES[name](argument))
        elif name in _CHANGES:
            _CHANGES[name](stack)
        elif name in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in {"GET", "BINGET", "LONG_BINGET"}:
            stack.append(_shared(memo[argument]))
        elif name not in {"PROTO", "FRAME", "STOP"}:
            raise ValueError(f"it has {name}, {_EXPECTED}")
    return stack[-1]


_EXPECTED = "expected lists of bytes and booleans alone"
_MARK = object()
_ENCODE = object()  # stands for _codecs.encode, by which protocols without bytes write them; nothing is called
_LATIN = "latin1"


def _shared(value: Any) -> Any:
    """Return what may appear twice: no text, which a hostile file could have encoded over and over."""
    if not (isinstance(value, bytes) or value is _ENCODE or value == _LATIN):
        raise ValueError("it uses a list or a text twice")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"it has the number {value}, {_EXPECTED}")
    return value


def _encode(name: str) -> object:
    if name != "_codecs encode":
        raise ValueError(f"it names {name.replace(' ', '.')}, {_EXPECTED}")
    return _ENCODE


def _since_mark(stack: list[Any]) -> list[Any]:
    """Remove and return the items above the last mark, and remove the mark."""
    found = []
    while (value := stack.pop()) is not _MARK:
        found.append(value)
    return found[::-1]


def _extend(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise TypeError("it appends to what is no list")
    stack[-1].extend(values)


def _reduce(stack: list[Any]) -> None:
    """Do what ``_codecs.encode(text, "latin1")`` would."""
    arguments, function = stack.pop(), stack.pop()
    if function is not _ENCODE or not isinstance(arguments, tuple) or arguments[1:] != (_LATIN,):
        raise ValueError(f"it calls something, {_EXPECTED}")
    stack.append(arguments[0].encode("latin-1"))


_PUSHES: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), lambda value: value),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), lambda text: text.encode("latin-1")),  # bytes of Python 2
    **dict.fromkeys(("UNICODE", "BINUNICODE"), lambda text: text),  # what _ENCODE is given
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "INT": _boolean,  # "01" and "00" of protocols 0 and 1
    "GLOBAL": _encode,
    "MARK": lambda _: _MARK,
    "EMPTY_LIST": lambda _: [],
}
"""Tokens that put something on the stack, made from their argument."""

_CHANGES: Mapping[str, Callable[[list[Any]], None]] = {
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE2": lambda stack: stack.append((stack.pop(-2), stack.pop())),
    "APPEND": lambda stack: _extend(stack, [stack.pop()]),
    "APPENDS": lambda stack: _extend(stack, _since_mark(stack)),
    "REDUCE": _reduce,
}
"""Tokens that combine items on the stack."""
