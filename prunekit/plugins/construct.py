"""Construct an object of a plugin class from the options a user wrote: look up, convert and check them.

The options are the constructor arguments of the class, which must be an attrs class or take no arguments; a
hand-written constructor with arguments is refused because it declares no types, defaults and help. This module
knows classes and values; it must not know plugins, recipes or commands.
"""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs

from prunekit.errors import ConfigError, PluginError, nearest


@attrs.frozen
class OptionInfo:
    """One option of a class, as ``prunekit show`` prints it.

    Attributes:
        name: the name in recipes and on the command line.
        type: the annotated type.
        default: the default value; ``attrs.NOTHING`` if the option is required.
        help: one line of help.
        choices: the allowed values; empty: any.
        low: the lowest allowed value.
        high: the highest allowed value.
    """

    name: str
    type: Any
    default: Any
    help: str = ""
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def expected(self) -> str:
        """The type, in words."""
        return _in_words(self.type)

    @property
    def default_text(self) -> str:
        """The default, as a user writes it."""
        if self.default is attrs.NOTHING:
            return "(must be given)"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return '""' if self.default == "" else str(self.default).replace("None", "none")

    @property
    def meaning(self) -> str:
        """Help, choices and limits in one line."""
        limits = []
        if self.choices:
            limits.append("one of " + ", ".join(map(str, self.choices)))
        if self.low is not None:
            limits.append(f"at least {self.low:g}")
        if self.high is not None:
            limits.append(f"at most {self.high:g}")
        return "; ".join(filter(None, (self.help, *limits)))


def options_of(cls: type) -> dict[str, OptionInfo]:
    """Return the options of a class by name, in the order of its constructor.

    Raises:
        PluginError: the constructor is hand-written, the class has options without ``@attrs.define``, or an annotation
            cannot be resolved.
    """
    for ancestor in cls.__mro__:
        for name, value in vars(ancestor).items():
            if isinstance(value, _UNDECORATED):
                raise PluginError(f"option {name!r} has no effect; put @attrs.define above class {ancestor.__name__}")
    taken = [name for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD]
    if not taken:
        return {}
    fields = {field.alias: field for field in attrs.fields(cls) if field.init} if attrs.has(cls) else {}
    if set(taken) != set(fields):
        raise PluginError(f"its constructor with {', '.join(taken)} is hand-written; make it an attrs class")
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise PluginError(f"the type of an option cannot be resolved: {error}; import it in the module") from error
    return {name: _describe(name, fields[name], hints) for name in taken}


# An int of hundreds of digits overflows a float.
_NOT_CONVERTED = (
    ValueError,
    TypeError,
    OverflowError,
    cattrs.BaseValidationError,
    cattrs.StructureHandlerNotFoundError,
    cattrs.errors.CattrsError,  # a value outside of a Literal
)

# The type that attrs.field() returns; attrs removes such attributes from classes that it decorates.
_UNDECORATED = type(attrs.field())


def _describe(name: str, field: "attrs.Attribute[Any]", hints: Mapping[str, Any]) -> OptionInfo:
    default = field.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type] # a class at run time, a function in the stubs
        factory: Any = default
        default = attrs.NOTHING if factory.takes_self else factory.factory()
    known = {key: field.metadata[key] for key in ("help", "choices", "low", "high") if key in field.metadata}
    return OptionInfo(name, hints.get(field.name, Any), default, **known)


def convert_options(cls: type, options: Mapping[str, Any], section: str, owner: str) -> dict[str, Any]:
    """Convert the values a user wrote to the types of the options, such as text to numbers, booleans or ``None``.

        convert_options(Correlation, {"seed": "3"}, "criterion", "criterion 'correlation'")

    Args:
        cls: the class that has the options.
        options: name -> value, given options only.
        section: recipe section, for messages: "criterion"; "" at the top level.
        owner: owner of the options, for messages: "criterion 'correlation'".

    Raises:
        ConfigError: an unknown option or a value of another type; names section, key and value.
    """
    known = options_of(cls)
    converted = {}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{owner} has no option {name!r}{nearest(name, known)}")
        try:
            converted[name] = _convert(value, known[name].type)
        except _NOT_CONVERTED as error:
            where = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{where} is {value!r}, expected {known[name].expected}") from error
    return converted


def construct(cls: type, options: Mapping[str, Any], section: str, owner: str) -> Any:
    """Construct an object of ``cls`` from the options of a user; see ``convert_options`` for the arguments.

    Raises:
        ConfigError: an unknown or missing option, a value of another type, or a value that the class refuses.
    """
    converted = convert_options(cls, options, section, owner)
    needed = [info.name for info in options_of(cls).values() if info.default is attrs.NOTHING]
    missing = [name for name in needed if name not in converted]
    if missing:
        raise ConfigError(f"{owner} needs option {missing[0]!r}; set it with -o {section}.{missing[0]}=VALUE")
    try:
        return cls(**converted)
    except ValueError as error:
        problem = " ".join(str(error).split())
        named = problem.partition(" ")[0] in converted
        raise ConfigError(f"{section}.{problem}" if named else f"{owner}: {problem}") from error


def _convert(value: Any, kind: Any) -> Any:
    if _is_list(kind) and isinstance(value, str | Mapping):  # their characters or keys would become the items
        raise TypeError(value)
    return _CONVERTER.structure(value, kind)


def _is_list(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) in {list, tuple, set, frozenset, Sequence}


def _to_bool(value: Any, _: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(value)


def _to_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return int(value)


def _to_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(value)
    if isinstance(value, str) and "/" in value:
        above, below = value.split("/")
        return float(above) / (float(below) or float("nan"))
    return float(value)


def _to_text(value: Any, _: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float | Path):
        raise TypeError(value)
    return str(value)


def _to_path(value: Any, _: Any) -> Path:
    text = _to_text(value, str)
    if not text:  # Path("") would mean the current folder
        raise ValueError(value)
    return Path(text)


def _to_none(value: Any, _: Any) -> None:
    if value is not None and value != "none":  # TOML has no null
        raise ValueError(value)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in {typing.Union, types.UnionType}


def _to_union(value: Any, kind: Any) -> Any:
    """Take the first member that the value converts to; ``None`` first, text last."""
    members = typing.get_args(kind)
    for member in sorted(members, key=lambda member: (member is str, member is not types.NoneType)):
        try:
            return _convert(value, member)
        except _NOT_CONVERTED:
            continue
    raise ValueError(value)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    converter.register_structure_hook(bool, _to_bool)
    converter.register_structure_hook(int, _to_int)
    converter.register_structure_hook(float, _to_float)
    converter.register_structure_hook(str, _to_text)
    converter.register_structure_hook(Path, _to_path)
    converter.register_structure_hook(types.NoneType, _to_none)
    converter.register_structure_hook_func(_is_union, _to_union)
    return converter


_CONVERTER = _make_converter()

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "none",
}


def _in_words(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_in_words(member) for member in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if kind is Any:
        return "anything"
    if _is_list(kind):
        numbers = {*typing.get_args(kind)} & {int, float}
        return "a list, for example " + ("[1, 2]" if numbers else '["a", "b"]')
    return _WORDS.get(kind) or (kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind))
