"""The text that a user writes for a structure, "f=1/256 5b=1/128 4b=1/2", and the layers that its names stand for.

It must not know networks or plans.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from prunekit.contracts.schedule import Target, check_density
from prunekit.errors import ConfigError
from prunekit.layers.lookup import resolve

_EXAMPLE = "expected for example 'f=1/256 5b=1/128' or 'conv*=0.5'"
EMPTY = f"the structure is empty, {_EXAMPLE}"


def parse_structure(text: str) -> tuple[tuple[str, float], ...]:
    """Parse "NAME=DENSITY ..." into pairs, in the order written.

    >>> parse_structure("f=1/256, conv*=0.5")
    (('f', 0.00390625), ('conv*', 0.5))

    Args:
        text: entries separated by spaces or commas; densities are decimals or fractions, in (0, 1].

    Raises:
        ConfigError: an entry that cannot be parsed, or a density outside (0, 1]; the message names the entry.
    """
    entries = re.sub(r"\s*=\s*", "=", text).replace(",", " ").split()
    if not entries:
        raise ConfigError(EMPTY)
    parsed = []
    for entry in entries:
        pattern, equals, number = entry.rpartition("=")
        if not equals or not pattern or "=" in pattern:
            raise ConfigError(f"cannot parse structure entry {entry!r}, {_EXAMPLE}")
        density = _parse_density(number, entry)
        check_density(density, f"structure entry {entry!r}")
        parsed.append((pattern, density))
    return tuple(parsed)


def _parse_density(text: str, entry: str) -> float:
    percent = re.fullmatch(r"(\d+\.?\d*)%", text)
    if percent:
        raise ConfigError(
            f"structure entry {entry!r}: a density is a fraction; write {float(percent[1]) / 100:g} for {text}"
        )
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1.0)
    except ZeroDivisionError:
        raise ConfigError(f"structure entry {entry!r} divides by zero") from None
    except ValueError:
        raise ConfigError(f"structure entry {entry!r}: {text!r} is not a density, {_EXAMPLE}") from None


def resolve_structure(
    text: str,
    layers: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> tuple[Target, ...]:
    """Parse a structure and replace names, aliases and globs by the layers that they stand for.

    Args:
        text: as for ``parse_structure``.
        layers: the prunable layers, from input to output.
        aliases: the task's short names, alias -> layer, or a glob: the same layer of several networks.
        others: modules of the network that are not layers, for a better message.

    Returns:
        The layers to prune, in the order written. All layers of an alias are one entry; each layer that a glob matches
        is an entry of its own, in the order of the network.

    Raises:
        ConfigError: an entry that cannot be parsed, an unknown layer or one that cannot be pruned, a layer named twice.
    """
    return resolve_densities(parse_structure(text), layers, aliases, others)


def resolve_densities(
    densities: Iterable[tuple[str, float]],
    layers: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> tuple[Target, ...]:
    """Replace names, aliases and globs by the layers that they stand for; ``resolve_structure`` without the parsing.

    Args:
        densities: (name, alias or glob; density) in order.
        layers: the prunable layers, from input to output.
        aliases: the task's short names, alias -> layer or glob.
        others: modules of the network that are not layers, for a better message.

    Raises:
        ConfigError: an unknown layer, one that cannot be pruned, or one named twice.
    """
    aliases = aliases or {}
    without_view = set(others)
    chosen: dict[str, str] = {}
    entries: list[Target] = []
    for pattern, density in densities:
        module = aliases.get(pattern, pattern)
        if module not in layers and module in without_view:
            inside = any(layer.startswith(f"{module}.") for layer in layers)
            hint = f"for all layers inside it write '{module}.*'" if inside else "no plugin has a layer view for it"
            raise ConfigError(f"module {module!r} has no weights that can be pruned; {hint}")
        found = resolve(pattern, layers, aliases)
        for layer in found:
            if layer in chosen:
                raise ConfigError(f"layer {layer!r} is named twice: by {chosen[layer]!r} and by {pattern!r}")
            chosen[layer] = pattern
        if pattern in aliases and len(found) > 1:
            entries.append(Target(pattern, dict.fromkeys(found, density)))
        else:
            entries += [Target(layer, {layer: density}) for layer in found]
    return tuple(entries)
