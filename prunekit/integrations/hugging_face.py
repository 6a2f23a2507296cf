"""Masks held while the ``Trainer`` of Hugging Face transformers trains.

It must know no more of transformers than the callback and the two settings it refuses; nor criteria or the engine.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks


class HoldMasks(TrainerCallback):
    """Hold masks from the beginning to the end of ``Trainer.train``: ``Trainer(..., callbacks=[HoldMasks(masks)])``.

    After every step, and so in every checkpoint, the dropped weights are exactly 0.0. Where training goes on
    from a checkpoint, or ends with an earlier one as the best, they are zeroed once more.

    Args:
        masks: what to hold; their names are those of the model given to the trainer.

    Raises:
        ConfigError: when the trainer shards parameters (FSDP, DeepSpeed), which masks do not follow.
        MaskError: at the beginning of the training, when the masks do not fit the model.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self._held: Held[Masks] | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.fsdp or args.deepspeed:
            raise ConfigError("masks cannot be held on sharded parameters; train without fsdp and deepspeed")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._held is not None:  # a training that broke off had no end
            self._held.detach()
        self._held = self.masks.hold(kwargs["model"], kwargs["optimizer"]).attach()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._held is not None
        self._held.detach()
        self._held = None
        self.masks.apply(kwargs["model"])
