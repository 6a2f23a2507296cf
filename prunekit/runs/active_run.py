"""A run in progress: its fixed settings and the record of its changing state.

It must not know files, or in which order things happen.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import attrs
import pluggy
import torch

from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import local_shard
from prunekit.distributed.ranks import gather_numbers
from prunekit.errors import NotFiniteError
from prunekit.layers.channels.groups import by_parameter
from prunekit.layers.lookup import parameter_name
from prunekit.masks.masks import Masks
from prunekit.pruning.training_traces import no_traces, tracing
from prunekit.runs.config import RunConfig
from prunekit.runs.folder import RunFolder
from prunekit.runs.interruption import Interruption
from prunekit.runs.preparation import PreparedRun
from prunekit.runs.state import RunState
from prunekit.runs.training.hardware import Hardware

STABILITY_ADVICE = "try a lower rate, more warm-up or clipping (-o training.warmup=0.1 -o training.clip_norm=5)"


@attrs.frozen
class ActiveRun:
    """A run in progress.

    Attributes:
        config: what the user requested.
        prepared: task, model, layers and plan.
        folder: where the run writes.
        hardware: where it computes.
        hook: notified of everything that happens; only the first rank has listeners.
        interruption: whether the user has requested a stop.
        state: everything that changes, apart from the model's weights.
    """

    config: RunConfig
    prepared: PreparedRun
    folder: RunFolder
    hardware: Hardware
    hook: pluggy.HookRelay
    interruption: Interruption
    state: RunState = attrs.field(factory=RunState)

    @property
    def seeds(self) -> Seeds:
        """The root of all randomness."""
        return Seeds(self.config.seed)

    def data_seeds(self, stage: int) -> Seeds:
        """Return the seeds of a stage's order of training data."""
        return Seeds(self.seeds.derive("data", stage))


def current_masks(run: ActiveRun) -> Masks:
    """Return the masks by parameter name, with the facts that go into their file.

    Where channels are pruned, they include the parameters that follow the channels, such as biases.
    """
    views, config = run.prepared.views, run.config
    requested = {name: density for stage in run.state.finished for name, density in stage.requested.items()}
    info = {
        "criterion": Path(config.criterion.name).name,  # of a file, only the name
        "schedule": Path(config.schedule.name).name,
        "seed": config.seed,
        "requested": {parameter_name(name, views[name]): density for name, density in sorted(requested.items())},
    }
    return Masks(by_parameter(views, run.state.masks, run.prepared.channel_groups), info)


def check_finite(run: ActiveRun, when: str) -> None:
    """Refuse to continue, or to save, with weights that are NaN or infinite; all ranks must call it.

    Buffers may be infinite, as attention masks are, but not NaN.

    Raises:
        NotFiniteError: naming the tensor, and what to try.
    """
    model = run.prepared.model
    tensors, weights = model.state_dict(), {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shards = {name: local_shard(tensor) for name, tensor in tensors.items()}
    good = (shard.isfinite() if name in weights else ~shard.isnan() for name, shard in shards.items())
    everyone = gather_numbers([bool(shard.all()) for shard in good])
    for name, *finite in zip(tensors, *everyone, strict=True):
        if not all(finite):
            raise NotFiniteError(
                f"{when}, {name!r} contains NaN or infinite values; earlier checkpoints are kept in "
                f"{run.folder.checkpoints}; {STABILITY_ADVICE}"
            )


def begin_traces(run: ActiveRun, layers: Iterable[str]) -> None:
    """Start new sums over training steps, if the criterion ranks by them; earlier sums are dropped."""
    summed = "training" in run.prepared.make_criterion().needs
    run.state.traces = no_traces({name: run.prepared.views[name] for name in layers}) if summed else {}


def summing_traces(run: ActiveRun, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Return the context in which the criterion sums over the optimiser's steps."""
    if not run.state.traces:
        return nullcontext()
    return tracing(run.prepared.make_criterion(), run.prepared.views, run.state.traces, optimizer)
