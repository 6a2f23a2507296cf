"""The configuration of a run: one frozen record of text and numbers without contradictions.

The registry looks up what the names stand for later. This module must not know recipes, flags or files.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from prunekit.contracts.training import Training, budget_of
from prunekit.errors import ConfigError
from prunekit.layers.densities import Rule
from prunekit.masks.patterns import Pattern, parse_pattern
from prunekit.masks.selection import Scope
from prunekit.plugins.construct import construct
from prunekit.pruning.structure import Structure
from prunekit.pruning.structure_text import parse_structure

_NO_OPTIONS: Mapping[str, Any] = {}


@attrs.frozen
class Choice:
    """One plugin class by name, and its options as the user wrote them."""

    name: str
    options: Mapping[str, Any] = _NO_OPTIONS


@attrs.frozen
class RunConfig:
    """Everything a run depends on.

    Attributes:
        task: what is being learned.
        criterion: which connections of a layer to keep.
        schedule: when to prune what.
        structure: "LAYER=DENSITY ..."; ``None``: the task's own.
        density: short for the structure "*=DENSITY"; excludes ``structure``.
        distribution: how the layers share ``density``, which is then the exact total: "uniform", "erdos-renyi",
            "erdos-renyi-kernel"; ``None``: each layer has that density.
        keep_dense: layers that are not pruned: names, aliases, globs, "first", "last"; the other layers get sparser
            to meet ``density``.
        pattern: "2:4", "4x1" (rows x columns), "units", "channels"; the default of all mask updates.
        scope: "unit", "layer" or "global", within which weights compete; the default of all mask updates. ``None``:
            the scope that the criterion prefers.
        masks: a mask file to start from; ``None``: start with all weights.
        freeze_masks: only retrain, in one stage, under these masks.
        dense: train through the plan's stages without changing a mask, as the control of a pruned run.
        weights: a file with weights of the deployed network to start from; ``None``: the task's own.
        sparse_model: whether the run writes its model as a sparse checkpoint.
        training: fields of ``prunekit.contracts.training.Training`` that differ from the task's own.
        seed: the root seed, at least 0.
        device: "auto", "cpu", "cuda", "cuda:1".
        out: the run folder; ``None``: a new one under "runs".
        no_plugins: names of plugins to disable.

    Raises:
        ConfigError: a value that is wrong whatever the task.
    """

    task: Choice = Choice("deepid2plus")
    criterion: Choice = Choice("correlation")
    schedule: Choice = Choice("layerwise")
    structure: str | None = None
    density: float | None = None
    distribution: Rule | None = None
    keep_dense: tuple[str, ...] = ()
    pattern: str | None = None
    scope: Scope | None = None
    masks: str | None = None
    freeze_masks: bool = False
    dense: bool = False
    weights: str | None = None
    sparse_model: bool = False
    training: Mapping[str, Any] = _NO_OPTIONS
    seed: int = 0
    device: str = "auto"
    out: str | None = None
    no_plugins: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(RunConfig):
            _check_text(getattr(self, field.name), field.name)
        for key in ("masks", "weights", "out"):
            if getattr(self, key) == "":
                raise ConfigError(f"{key} is empty, expected a path; leave it out if there is none")
        if self.freeze_masks and self.masks is None:
            raise ConfigError("freeze_masks retrains under given masks, but no masks are given; add --masks FILE")
        if self.freeze_masks and self.dense:
            raise ConfigError("dense prunes nothing, but freeze_masks retrains under given masks; give one of them")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected a whole number, at least 0")
        self.requested_structure()  # refuses contradictions
        merge_training(Training(), self.training)

    @property
    def parsed_pattern(self) -> Pattern | None:
        """The pattern as a record."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    def requested_structure(self) -> Structure:
        """Return the requested densities and how they are distributed; without any, those of the task apply.

        Raises:
            ConfigError: they contradict each other.
        """
        densities = None if self.structure is None else parse_structure(self.structure)
        return Structure(self.density, densities, self.distribution, self.keep_dense, self.parsed_pattern)

    @property
    def structure_text(self) -> str | None:
        """The structure that the user requested in either way, as text; ``None``: the task's own."""
        one_density = self.requested_structure().one_density
        return self.structure if one_density is None else f"*={one_density!r}"


def _check_text(value: Any, where: str) -> None:
    """Refuse text that no recipe can hold: file names that are not UTF-8, which Python reads as surrogates."""
    if isinstance(value, Choice):
        _check_text({"name": value.name, **value.options}, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_text(item, where)
    elif isinstance(value, str) and not is_utf8(value):
        raise ConfigError(f"{where} is {value!r}, which is not valid UTF-8; rename the file or folder")


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; arguments that the shell gave in another encoding cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def merge_training(defaults: Training, overrides: Mapping[str, Any]) -> Training:
    """Return the task's training settings with a user's overrides.

    Raises:
        ConfigError: an unknown setting or an invalid value; names "training.KEY".
    """
    settings = attrs.asdict(defaults) | dict(overrides)
    training: Training = construct(Training, settings, "training", "section [training]")
    budget_of(training)
    return training
