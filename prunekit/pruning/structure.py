"""The structure that a user requests: densities, how they are distributed, and the pattern of the masks.

``prunekit.select``, recipes and the command line all build a ``Structure``, so that they refuse the same contradictions
in the same words. This module must not know models, criteria or plans.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from prunekit.contracts.schedule import Target, check_density
from prunekit.errors import ConfigError
from prunekit.layers.channels.groups import ChannelGroups
from prunekit.layers.densities import RULES, Rule
from prunekit.layers.view import LayerShape
from prunekit.masks.patterns import NofM, Pattern
from prunekit.pruning.structure_text import EMPTY, parse_structure, resolve_densities
from prunekit.pruning.targets import check_fit, distribute, join_channel_groups


@attrs.frozen
class Structure:
    """The structure that a user requests.

        structure = Structure(density=0.1, distribution="erdos-renyi", keep_dense=("last",))
        structure.targets([view.shape(name) for name, view in find_layers(model).items()])

    Attributes:
        density: one density, kept / total in (0, 1], of each layer; if ``distribution`` or ``keep_dense`` is
            given, of all layers together.
        densities: (layer name, alias or glob; density) in the order of pruning; other layers are not pruned. ``None``
            together with ``density=None``: the density of an N:M pattern.
        distribution: how the layers share ``density``, see ``prunekit.layers.densities.allocate_density``. ``None``:
            each layer has that density, except that "uniform" makes up for ``keep_dense``.
        keep_dense: layers that are not pruned: names, aliases, globs, "first", "last"; the others become sparser, so
            that the total is the same.
        pattern: the pattern of the masks; ``None``: unstructured.

    Raises:
        ConfigError: values that contradict each other in any network.
    """

    density: float | None = None
    densities: tuple[tuple[str, float], ...] | None = None
    distribution: Rule | None = None
    keep_dense: tuple[str, ...] = ()
    pattern: Pattern | None = None

    def __attrs_post_init__(self) -> None:
        self._check_densities()
        self._check_distribution()
        if isinstance(self.pattern, NofM):
            self._check_n_of_m(self.pattern)

    def _check_densities(self) -> None:
        if self.density is not None and self.densities is not None:
            raise ConfigError(f"both structure {self._text!r} and density {self.density:g} are given; give one of them")
        if self.density is not None:
            check_density(self.density, "density")
        if self.densities == ():
            raise ConfigError(EMPTY)
        for name, density in self.densities or ():
            check_density(density, f"structure entry '{name}={density:g}'")

    def _check_distribution(self) -> None:
        if self.distribution is not None and self.distribution not in RULES:
            raise ConfigError(f"distribution is {self.distribution!r}, expected one of {', '.join(RULES)}")
        for key, value in (("distribution", self.distribution), ("keep_dense", ", ".join(self.keep_dense))):
            if value and self.densities is not None:
                raise ConfigError(
                    f"{key} {value!r} divides one density among the layers, but structure {self._text!r} gives each "
                    f"layer its own; give one density instead of the structure, or leave {key} out"
                )
            if value and self.one_density is None:
                raise ConfigError(
                    f"{key} {value!r} divides one density among the layers, but no density is given; add a density"
                )

    def _check_n_of_m(self, pattern: NofM) -> None:
        share = pattern.n / pattern.m
        if self.density is not None and not math.isclose(self.density, share):
            raise ConfigError(
                f"pattern {pattern} has density {share:g}, but got density {self.density:g}; leave the density out"
            )
        if self.distribution is not None:
            raise ConfigError(
                f"pattern {pattern} has density {share:g} in every layer, so there is nothing to distribute; leave "
                f"distribution {self.distribution!r} out"
            )
        if self.keep_dense and self.density is not None:
            raise ConfigError(
                f"pattern {pattern} has density {share:g} in every pruned layer, so the pruned layers "
                "cannot make up for those in keep_dense; leave the density out"
            )

    @property
    def one_density(self) -> float | None:
        """The one density that is requested, by an N:M pattern alone too; ``None``: densities by layer, or none."""
        if self.density is None and self.densities is None and isinstance(self.pattern, NofM):
            return self.pattern.n / self.pattern.m
        return self.density

    def or_default(self, text: str) -> "Structure":
        """Return this structure with the densities of a text, or unchanged if it has densities or the text is empty.

        Raises:
            ConfigError: the text is not a structure.
        """
        if self.densities is not None or self.one_density is not None or not text:
            return self
        return attrs.evolve(self, densities=parse_structure(text))

    @property
    def _text(self) -> str:
        return " ".join(f"{name}={density:g}" for name, density in self.densities or ())

    @property
    def _is_distributed(self) -> bool:
        """Whether the layers share one density, so that dense layers make the others sparser."""
        return self.distribution is not None or bool(self.keep_dense)

    def targets(
        self,
        layers: Sequence[LayerShape],
        aliases: Mapping[str, str] | None = None,
        others: Iterable[str] = (),
        channel_groups: ChannelGroups | None = None,
    ) -> tuple[Target, ...]:
        """Return the layers to prune with their densities, in the order of pruning.

        Args:
            layers: all prunable layers of the network, from input to output.
            aliases: short names of the task, alias -> layer or glob.
            others: modules of the network that are not layers, for a better message.
            channel_groups: the channels of the network if whole channels are pruned. Layers that share channels become
                one entry; layers of which no channel can be removed are not pruned.

        Raises:
            ConfigError: no density, an unknown layer, a total that cannot be met, a pattern that does not fit a layer,
                or different densities for layers that share channels.
        """
        entries = self._entries(layers, aliases, others, channel_groups)
        if self.pattern is not None:
            check_fit(entries, layers, self.pattern)
        if channel_groups is None:
            return entries
        weights = {layer.name: layer.weights for layer in layers} if self._is_distributed else None
        return join_channel_groups(entries, channel_groups, weights)

    def _entries(
        self,
        layers: Sequence[LayerShape],
        aliases: Mapping[str, str] | None,
        others: Iterable[str],
        channel_groups: ChannelGroups | None,
    ) -> tuple[Target, ...]:
        names = [layer.name for layer in layers]
        if self.one_density is None and self.densities is None:
            raise ConfigError(
                "no density is given; give one for all layers, or one for each layer to prune, such as conv*=0.5"
            )
        if self.one_density is None or not self._is_distributed:
            densities = self.densities if self.one_density is None else (("*", self.one_density),)
            return resolve_densities(densities or (), names, aliases, others)
        fixed = () if channel_groups is None else (name for name in names if name not in channel_groups.prunable)
        keep_dense = (*self.keep_dense, *fixed)
        return distribute(self.one_density, layers, self.distribution or "uniform", keep_dense, aliases, self.pattern)
