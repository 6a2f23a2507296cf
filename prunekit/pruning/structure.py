"""The sparse structure that a user writes: "f=1/256 5b=1/128 4b=1/2", in the order of pruning.

This module knows text and layer names; it must not know models or schedules' plans.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from prunekit.contracts.schedule import Target, check_density
from prunekit.errors import ConfigError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.densities import Rule, allocate_density
from prunekit.layers.lookup import resolve
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import NofM, Pattern, pattern_problem

_EXAMPLE = "expected for example 'f=1/256 5b=1/128' or 'conv*=0.5'"


def parse_structure(text: str) -> tuple[tuple[str, float], ...]:
    """Read "PATTERN=DENSITY ..." in the order written; spaces or commas between entries.

    Args:
        text: densities are decimals or fractions, in (0, 1].

    Raises:
        ConfigError: an entry that is not understood, or a density outside (0, 1]; names the entry.
    """
    entries = re.sub(r"\s*=\s*", "=", text).replace(",", " ").split()
    if not entries:
        raise ConfigError(f"the structure is empty, {_EXAMPLE}")
    parsed = []
    for entry in entries:
        pattern, equals, number = entry.rpartition("=")
        if not equals or not pattern or "=" in pattern:
            raise ConfigError(f"structure entry {entry!r} is not understood, {_EXAMPLE}")
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
        raise ConfigError(f"structure entry {entry!r}: {text!r} is no density, {_EXAMPLE}") from None


def resolve_structure(
    text: str,
    layers: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> tuple[Target, ...]:
    """Read a structure and replace names, aliases and globs by the layers they mean.

    Args:
        text: see ``parse_structure``.
        layers: the prunable layers, from input to output.
        aliases: the task's short names, alias -> layer, or a glob: the same layer of several networks.
        others: modules of the network that have no view, for a better message.

    Returns:
        What to prune, in the order written. All that an alias means is one entry; each layer that a glob means
        is one of its own, in the order of the network.

    Raises:
        ConfigError: an entry that is not understood, an unknown or a not prunable layer, a layer named twice.
    """
    return resolve_densities(parse_structure(text), layers, aliases, others)


def resolve_densities(
    densities: Iterable[tuple[str, float]],
    layers: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    others: Iterable[str] = (),
) -> tuple[Target, ...]:
    """Replace names, aliases and globs by the layers they mean; like ``resolve_structure``, of what is read already.

    Args:
        densities: (pattern, density) in order.
        layers: the prunable layers, from input to output.
        aliases: the task's short names, alias -> layer or glob.
        others: modules of the network that have no view, for a better message.

    Raises:
        ConfigError: an unknown or a not prunable layer, or one named twice.
    """
    aliases = aliases or {}
    without_view = set(others)
    chosen: dict[str, str] = {}
    entries: list[Target] = []
    for pattern, density in densities:
        module = aliases.get(pattern, pattern)
        if module not in layers and module in without_view:
            inside = any(layer.startswith(f"{module}.") for layer in layers)
            hint = f"for all layers inside it write '{module}.*'" if inside else "no plugin gives a view of it"
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


def distribute(
    density: float,
    layers: Sequence[LayerShape],
    rule: Rule = "uniform",
    keep_dense: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
    pattern: Pattern | None = None,
) -> tuple[Target, ...]:
    """Share one total density out to all layers but those that stay dense.

    Args:
        density: of all layers together; of N:M, of each that is pruned.
        layers: the prunable layers, from input to output.
        rule: see ``prunekit.layers.densities.allocate_density``.
        keep_dense: names, aliases, globs, "first" and "last".
        aliases: the task's short names, alias -> layer or glob.
        pattern: what stays or goes together.

    Returns:
        One entry a layer, in the order of the network.

    Raises:
        ConfigError: an unknown layer, no layer left to prune, or a total that cannot be met.
    """
    names = [layer.name for layer in layers]
    ends = {"first": names[0], "last": names[-1]}
    known = {*names, *(aliases or {})}
    dense: dict[str, None] = {}
    for wanted in keep_dense:
        end = wanted in ends and wanted not in known
        dense |= dict.fromkeys([ends[wanted]] if end else resolve(wanted, names, aliases))
    if len(dense) == len(names):
        raise ConfigError(f"all layers stay dense ({', '.join(names)}); keep fewer of them dense")
    if isinstance(pattern, NofM):
        densities = dict.fromkeys(names, density)
    else:
        densities = allocate_density(layers, density, rule, tuple(dense), pattern)
    return tuple(Target(name, {name: densities[name]}) for name in names if name not in dense)


def join_channel_groups(
    entries: Iterable[Target], channel_groups: ChannelGroups, weights: Mapping[str, int] | None = None
) -> tuple[Target, ...]:
    """Make one entry of those whose layers make the same channels, and leave out layers that keep all of theirs.

    A joined entry stands in the place of the first, and is named after it and the number of others.

    Args:
        entries: what is asked.
        channel_groups: the channels of the network.
        weights: layer -> weights, where densities were shared out: layers of a joined entry then have one density, that
            of their sum. ``None``: they have to be asked for one.

    Raises:
        ConfigError: no layer is left; layers that make the same channels, not all of them named or with several
            densities.
    """
    asked = list(entries)
    left = [
        Target(
            entry.name, {name: density for name, density in entry.targets.items() if name in channel_groups.prunable}
        )
        for entry in asked
        if channel_groups.prunable & entry.targets.keys()
    ]
    if not left:
        told = "; ".join(f"{name}: {channel_groups.reason_kept(name)}" for entry in asked for name in entry.targets)
        raise ConfigError(f"no channel of the layers asked for can go ({told}); take pattern 'units'")
    joined = []
    while left:
        group = _together(left, channel_groups)
        left = [entry for entry in left if entry not in group]
        targets = {name: density for entry in group for name, density in entry.targets.items()}
        if weights is not None:
            kept = sum(density * weights[name] for name, density in targets.items())
            targets = dict.fromkeys(targets, kept / sum(weights[name] for name in targets))
        channel_groups.check(targets)
        joined.append(Target(group[0].name + (f"+{len(group) - 1}" if len(group) > 1 else ""), targets))
    return tuple(joined)


def _together(entries: Sequence[Target], channel_groups: ChannelGroups) -> list[Target]:
    """Return the first entry and all that share channels with it, directly or through others."""
    names = {*entries[0].targets}
    while True:
        group = [entry for entry in entries if names & entry.targets.keys()]
        found = {name for entry in group for name in entry.targets}
        found = found.union(*(group.units for group in channel_groups.groups if group.units.keys() & found))
        if found <= names:
            return group
        names |= found


def check_fit(entries: Iterable[Target], layers: Iterable[LayerShape], pattern: Pattern) -> None:
    """Refuse a pattern that does not fit some layers.

    Raises:
        ConfigError: naming all of them, and how to leave them out.
    """
    shapes = {layer.name: layer for layer in layers}
    targets = {name: density for entry in entries for name, density in entry.targets.items()}
    problems = {}
    for name, density in targets.items():
        # A wrong density is the plan's mistake, not the layer's.
        meant = pattern.n / pattern.m if isinstance(pattern, NofM) else density
        problem = pattern_problem(pattern, meant, shapes[name].outputs, shapes[name].fan_shape)
        if problem:
            problems[name] = problem
    if problems:
        listed = "; ".join(f"layer {name!r}: {problem}" for name, problem in problems.items())
        flags = " ".join(f"--keep-dense {name}" for name in problems)
        others = " ".join(f"{name}={density:g}" for name, density in targets.items() if name not in problems)
        instead = f"; or name only the others, --structure '{others}'" if others else ""
        raise ConfigError(f"{listed}; where one density is asked for, leave out with {flags}{instead}")
