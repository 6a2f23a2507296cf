"""Masks held while the ``Trainer`` of Lightning trains.

It must know no more of Lightning than the callback and the strategies it refuses; nor criteria or the engine.
"""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from prunekit.errors import ConfigError
from prunekit.masks.holding import Held
from prunekit.masks.masks import Masks


class HoldMasks(Callback):
    """Hold masks from the beginning to the end of ``Trainer.fit``: ``Trainer(callbacks=[HoldMasks(masks)])``.

    After every step of every optimiser, and so in every checkpoint, the dropped weights are exactly 0.0. Where
    training goes on from a checkpoint, they are zeroed once more.

    Args:
        masks: what to hold; their names are those of the ``LightningModule``.

    Raises:
        ConfigError: when the strategy shards parameters (FSDP, DeepSpeed, tensor parallel), which masks do
            not follow.
        MaskError: at the beginning of the training, when the masks do not fit the module.
    """

    def __init__(self, masks: Masks) -> None:
        self.masks = masks
        self._held: list[Held[Masks]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            name = type(trainer.strategy).__name__
            raise ConfigError(f"masks cannot be held on sharded parameters; train without {name}")

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
