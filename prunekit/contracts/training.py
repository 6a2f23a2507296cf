"""The settings of the training loop: defaults that a task chooses and a user overrides one by one.

Each group of settings has one owner, the part of a run that reads it. This module must not know tasks or loops.
"""

import attrs

from prunekit.contracts.options import option
from prunekit.contracts.schedule import Budget


@attrs.frozen
class Training:
    """How a run trains.

    A task returns the settings that suit it; ``[training]`` in a recipe and ``-o training.NAME=VALUE`` override single
    ones.

    >>> Training(budget="20 epochs", warmup=0.05, clip_norm=1.0).precision
    'fp32'

    Attributes:
        budget: length of the dense training: "600 steps" or "12 epochs".
        retraining: length of each stage after the dense training, written like ``budget``.
        decay: how the learning rate falls within a stage: "cosine", "linear" or "constant".
        warmup: fraction of a stage, in [0, 1], over which the learning rate rises linearly.
        retraining_rate: factor on the learning rates of stages that continue from trained weights, at least 0.
        accumulate: batches whose gradients are averaged into one optimiser step, at least 1.
        clip_norm: largest L2 norm of the gradient of all parameters together; ``None``: not clipped.
        skip_bad_steps: optimiser steps with a non-finite loss or gradient that a run may skip before it fails. Above 0,
            each step waits for the device.
        check_every: optimiser steps between two checks that the loss is finite; each check waits for the device.
        precision: arithmetic of the forward and backward passes: "fp32", "bf16" or "fp16".
        tf32: whether a GPU may round the factors of fp32 products to TF32; statistics never are.
        channels_last: whether images and convolutions are kept in channels-last memory order.
        compile: whether the model runs through ``torch.compile``.
        fused: whether the optimiser takes its step in one kernel (SGD, Adam, AdamW, Adagrad).
        parallel: with several processes: "ddp", each holds the whole model, or "fsdp", each holds a shard.
        workers: processes that prepare batches; 0: the main process does.
        calibration_batches: largest number of batches that a criterion observes; 0: the whole calibration set.
        checkpoint_every: optimiser steps between two checkpoints; 0: only at the end of a stage.
        keep_checkpoints: number of step checkpoints kept in the run folder, the newest ones, at least 1.
    """

    # The plan: how long stages are.
    budget: str = option("10 epochs", "length of the dense training: '600 steps' or '12 epochs'")
    retraining: str = option("5 epochs", "length of each stage after the dense training")

    # The learning rate over a stage.
    decay: str = option("cosine", "fall of the learning rate within a stage", choices=("cosine", "linear", "constant"))
    warmup: float = option(0.0, "fraction of a stage in which the learning rate rises linearly", low=0, high=1)
    retraining_rate: float = option(
        1.0, "factor on the learning rates of stages that continue from trained weights", low=0
    )

    # The optimiser step.
    accumulate: int = option(1, "batches whose gradients are averaged into one optimiser step", low=1)
    clip_norm: float | None = option(None, "largest norm of the whole gradient", low=0)
    skip_bad_steps: int = option(
        0,
        "steps with a non-finite loss or gradient that a run may skip (above 0, each step waits for the device)",
        low=0,
    )
    check_every: int = option(20, "optimiser steps between two checks of the loss (each waits for the device)", low=1)

    # The hardware.
    precision: str = option("fp32", "arithmetic of forward and backward", choices=("fp32", "bf16", "fp16"))
    tf32: bool = option(False, "let a GPU round the factors of fp32 products to TF32, never in statistics")
    channels_last: bool = option(False, "keep images and convolutions in channels-last memory order")
    compile: bool = option(False, "run the model through torch.compile")
    fused: bool = option(False, "take the optimiser's step in one kernel (SGD, Adam, AdamW, Adagrad)")

    # The processes of a distributed run.
    parallel: str = option(
        "ddp", "with several processes: each holds the whole model (ddp) or a shard (fsdp)", choices=("ddp", "fsdp")
    )

    # Reading batches.
    workers: int = option(0, "processes that prepare batches; 0: the main process", low=0)
    calibration_batches: int = option(0, "most batches a criterion observes; 0: the whole calibration set", low=0)

    # Checkpoints.
    checkpoint_every: int = option(0, "optimiser steps between checkpoints; 0: only at the end of a stage", low=0)
    keep_checkpoints: int = option(2, "step checkpoints kept in the run folder, the newest ones", low=1)


def budget_of(training: Training) -> tuple[Budget, Budget]:
    """Return the budget of the dense training and that of each stage after it.

    Raises:
        ConfigError: one of them cannot be parsed.
    """
    return Budget.parse(training.budget), Budget.parse(training.retraining)
