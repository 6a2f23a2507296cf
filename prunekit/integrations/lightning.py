"""Hold masks while the ``Trainer`` of Lightning trains.

It must not know criteria or the engine, nor anything of Lightning but the callback and the strategies it refuses.
"""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks


class HoldMasks(Callback):
    """Hold masks throughout ``Trainer.fit``.

        Trainer(callbacks=[HoldMasks(masks)]).fit(module)

    Dropped weights are exactly 0.0 after every step of every optimiser, and so in every checkpoint. When training
    resumes from a checkpoint, they are zeroed again.

    Args:
        masks: the masks to hold, under the parameter names of the ``LightningModule``.

    Raises:
        ConfigError: the strategy shards parameters (FSDP, DeepSpeed, tensor parallel), which is not supported.
        MaskError: the masks do not fit the module; raised when training begins.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self._held: list[Held[Masks]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            name = type(trainer.strategy).__name__
            raise ConfigError(f"masks cannot be held on parameters sharded by {name}; train with another strategy")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._held = [self.masks.hold(pl_module, optimizer).attach() for optimizer in trainer.optimizers]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def _detach(self) -> None:
        for held in self._held:
            held.detach()
        self._held = []
