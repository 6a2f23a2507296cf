"""From requested densities to targets: distribute one density, join layers that share channels, check the pattern.

It must not know how users write a structure.
"""

from collections.abc import Iterable, Mapping, Sequence

from prunekit.contracts.schedule import Target
from prunekit.errors import ConfigError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.densities import Rule, allocate_density
from prunekit.layers.lookup import resolve
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import NofM, Pattern, pattern_problem


def distribute(
    density: float,
    layers: Sequence[LayerShape],
    rule: Rule = "uniform",
    keep_dense: Iterable[str] = (),
    aliases: Mapping[str, str] | None = None,
    pattern: Pattern | None = None,
) -> tuple[Target, ...]:
    """Divide one total density among the layers, except those to keep dense.

    Args:
        density: of all layers together, in (0, 1]; with an N:M pattern, of each pruned layer.
        layers: the prunable layers, from input to output.
        rule: see ``prunekit.layers.densities.allocate_density``.
        keep_dense: names, aliases, globs, "first", "last".
        aliases: the task's short names, alias -> layer or glob.
        pattern: the pattern of the masks; ``None``: unstructured.

    Returns:
        One entry for each pruned layer, in the order of the network.

    Raises:
        ConfigError: an unknown layer, no layer left to prune, or a total that cannot be reached.
    """
    names = [layer.name for layer in layers]
    ends = {"first": names[0], "last": names[-1]}
    known = {*names, *(aliases or {})}
    dense: dict[str, None] = {}
    for wanted in keep_dense:
        end = wanted in ends and wanted not in known
        dense |= dict.fromkeys([ends[wanted]] if end else resolve(wanted, names, aliases))
    if len(dense) == len(names):
        raise ConfigError(f"keep_dense excludes all layers ({', '.join(names)}); exclude fewer")
    if isinstance(pattern, NofM):
        densities = dict.fromkeys(names, density)
    else:
        densities = allocate_density(layers, density, rule, tuple(dense), pattern)
    return tuple(Target(name, {name: densities[name]}) for name in names if name not in dense)


def join_channel_groups(
    entries: Iterable[Target], channel_groups: ChannelGroups, weights: Mapping[str, int] | None = None
) -> tuple[Target, ...]:
    """Join entries whose layers share channels, and drop layers of which no channel can be removed.

    A joined entry takes the place of the first one and is called "FIRST+N", with N other entries.

    Args:
        entries: the layers to prune with their densities.
        channel_groups: the channels of the network.
        weights: layer -> number of weights, if the densities were distributed: all layers of a joined entry then get
            the density of their sum. ``None``: they must have the same density already.

    Raises:
        ConfigError: no layer is left; layers that share channels have different densities, or only some of them have
            one.
    """
    requested = list(entries)
    left = [
        Target(
            entry.name, {name: density for name, density in entry.targets.items() if name in channel_groups.prunable}
        )
        for entry in requested
        if channel_groups.prunable & entry.targets.keys()
    ]
    if not left:
        names = [name for entry in requested for name in entry.targets]
        reasons = "; ".join(f"{name}: {channel_groups.reason_kept(name)}" for name in names)
        raise ConfigError(f"no channel of the requested layers can be removed ({reasons}); use pattern 'units'")
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
    """Raise an error if a pattern does not fit a layer.

    Raises:
        ConfigError: the message names all these layers, and how to exclude them.
    """
    shapes = {layer.name: layer for layer in layers}
    targets = {name: density for entry in entries for name, density in entry.targets.items()}
    problems = {}
    for name, density in targets.items():
        # The density is checked with the plan; here only the shape counts.
        meant = pattern.n / pattern.m if isinstance(pattern, NofM) else density
        problem = pattern_problem(pattern, meant, shapes[name].outputs, shapes[name].fan_shape)
        if problem:
            problems[name] = problem
    if problems:
        listed = "; ".join(f"layer {name!r}: {problem}" for name, problem in problems.items())
        excluded = ", ".join(problems)
        others = " ".join(f"{name}={density:g}" for name, density in targets.items() if name not in problems)
        instead = f"; with densities by layer, name only the others: {others}" if others else ""
        raise ConfigError(f"{listed}; with one density, add {excluded} to keep_dense{instead}")
