"""Count the weights that each stage of a plan keeps, without training.

It must not know how the counts are shown.
"""

from prunekit.contracts.schedule import MaskUpdate
from prunekit.masks.patterns import Channels, requested_count
from prunekit.runs.preparation import PreparedRun


def kept_by_stage(prepared: PreparedRun) -> list[int]:
    """Return the number of prunable weights that are kept at the end of each stage.

    prepared = preview(config)
    total = sum(layer.weights for layer in prepared.layers)
    densities = [kept / total for kept in kept_by_stage(prepared)]

    Patterns keep whole pieces, so a count may differ slightly from density x weights.
    """
    weights = {layer.name: layer.weights for layer in prepared.layers}
    kept = weights | {name: int(mask.sum()) for name, mask in prepared.given.masks.items()}
    counts = []
    for stage in prepared.plan.stages:
        for update in stage.updates:
            kept |= _kept(update, prepared)
        counts.append(sum(kept.values()))
    return counts


def _kept(update: MaskUpdate, prepared: PreparedRun) -> dict[str, int]:
    """Return layer -> number of weights that a mask update keeps."""
    layers = {layer.name: layer for layer in prepared.layers}
    if prepared.channel_groups is not None and isinstance(update.pattern, Channels):
        shares = prepared.channel_groups.kept_shares(update.targets)
        return {name: int(share * layers[name].weights) for name, share in shares.items()}
    return {
        name: requested_count(density, layers[name].weights, update.pattern, layers[name].fan)
        for name, density in update.targets.items()
    }
