"""Carry out the mask updates of a stage: choose masks, change the weights, hold them from then on.

It must not know when updates are due; that is planned in ``prunekit.runs.stages.stage_plan``.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch

from prunekit.contracts import events
from prunekit.contracts.schedule import MaskUpdate
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import local_shard
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks
from prunekit.pruning.rank_agreement import check_agreement
from prunekit.pruning.training_traces import forget_dropped
from prunekit.pruning.update import ChosenMasks, PrunableNetwork, choose_masks
from prunekit.runs.active_run import ActiveRun, current_masks
from prunekit.runs.interruption import interruptible_alone, raise_if_any_rank_requested
from prunekit.runs.stages.stage_plan import PlannedStage
from prunekit.runs.training.showing import BatchShower


def update_masks(
    run: ActiveRun,
    planned: PlannedStage,
    step: int,
    held: Held[Masks] | None = None,
    before_change: Callable[[], object] = lambda: None,
) -> None:
    """Carry out the updates that are due after ``step`` steps of a stage.

    Args:
        run: gets the masks.
        planned: the stage.
        step: optimiser steps of the stage that are done.
        held: holds the masks during training; ``None`` before training: masks are applied once.
        before_change: called when masks are chosen, before the first weight changes.

    Raises:
        KeyboardInterrupt: when the user requests a stop meanwhile.
    """
    for number, update in planned.updates_at(step):
        began = time.perf_counter()
        chosen = _choose(run, planned.index, number, update, held)
        check_agreement(chosen)
        before_change()
        _change(run, chosen, held, grows=update.grow is not None)
        event = events.MasksUpdated(planned.index, step, chosen.layers, time.perf_counter() - began)
        run.hook.prunekit_masks_updated(event=event)


def _choose(run: ActiveRun, stage: int, number: int, update: MaskUpdate, held: Held[Masks] | None) -> ChosenMasks:
    prepared = run.prepared
    shower = BatchShower(
        prepared.task,
        prepared.model,
        run.hardware,
        run.data_seeds(stage),
        prepared.training.calibration_batches,
        partial(raise_if_any_rank_requested, run.interruption),
    )
    whole = held.paused() if held is not None else nullcontext()
    with interruptible_alone(run.interruption), whole, run.hardware.products(exact=True):
        return choose_masks(
            PrunableNetwork(prepared.network, prepared.views, prepared.channel_groups),
            update,
            run.state.masks,
            prepared.make_criterion,
            shower.evidence(prepared.network, run.state.traces),
            Seeds(run.seeds.derive("update", stage, number)),
        )


def _change(run: ActiveRun, chosen: ChosenMasks, held: Held[Masks] | None, *, grows: bool) -> None:
    with torch.no_grad():
        for name, weight in chosen.repaired.items():
            local_shard(run.prepared.views[name].weight).copy_(local_shard(weight))
    forget_dropped(run.state.traces, chosen.pruned)
    # A weight that is dropped and regrown in one update starts from zero, like every regrown weight.
    for masks in (chosen.pruned, chosen.masks) if grows else (chosen.masks,):
        run.state.masks |= masks
        if held is not None:
            held.update(current_masks(run))
        else:
            current_masks(run).apply(run.prepared.network)
