"""Hold masks while the ``Trainer`` of Hugging Face transformers trains.

It must not know criteria or the engine, nor anything of transformers but the callback and the two settings it refuses.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks


class HoldMasks(TrainerCallback):
    """Hold masks throughout ``Trainer.train``.

        trainer = Trainer(model, arguments, callbacks=[HoldMasks(masks)], ...)
        trainer.train()

    Dropped weights are exactly 0.0 after every step, and so in every checkpoint. When training resumes from a
    checkpoint, or loads an earlier one as the best at the end, they are zeroed again.

    Args:
        masks: the masks to hold, under the parameter names of the trainer's model.

    Raises:
        ConfigError: the trainer shards parameters (FSDP, DeepSpeed), which is not supported.
        MaskError: the masks do not fit the model; raised when training begins.
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
        if self._held is not None:  # on_train_end is not called for training that failed
            self._held.detach()
        self._held = self.masks.hold(kwargs["model"], kwargs["optimizer"]).attach()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self._held is not None
        self._held.detach()
        self._held = None
        self.masks.apply(kwargs["model"])
