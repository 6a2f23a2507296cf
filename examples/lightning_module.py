"""Prune a LightningModule and fine-tune it under its masks with Lightning's Trainer."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunekit
from prunekit.integrations.lightning import HoldMasks


def images(seed: int, count: int) -> TensorDataset:
    """Return images of noisy stripes ``[count, 1, 8, 8]``, and 1 for vertical or 0 for horizontal ones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    stripes = (torch.arange(8) % 2).float().repeat(8, 1)
    clean = torch.where(labels[:, None, None].bool(), stripes, stripes.T)
    return TensorDataset(clean[:, None] + torch.randn(count, 1, 8, 8, generator=generator), labels)


class Stripes(pl.LightningModule):
    """A classifier of vertical and horizontal stripes, without any code for masks."""

    def __init__(self) -> None:
        super().__init__()
        features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.network = nn.Sequential(features, nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def train(module: Stripes, *callbacks: pl.Callback) -> None:
    """Train for a hundred steps; only the callback knows about masks."""
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=list(callbacks))
    trainer.fit(module, DataLoader(images(0, 6400), batch_size=64, shuffle=True))


def main() -> None:
    """Train, prune by neuron correlation, fine-tune under the masks, save."""
    torch.manual_seed(0)
    module = Stripes()
    train(module)
    batches, densities = DataLoader(images(1, 512), batch_size=64), {"network.0.0": 0.5, "network.1": 1 / 32}
    forward = lambda module, batch: module.network(batch[0])  # noqa: E731 - a shorthand
    masks = prunekit.select(module, "correlation", density=densities, batches=batches, forward=forward)
    train(module, HoldMasks(masks))
    masks.save("masks.safetensors")
    test, labels = images(2, 1000).tensors
    accuracy = (module.network.eval()(test).argmax(1) == labels).double().mean()
    print(f"density {masks.density():.4f}, accuracy {accuracy:.3f}, masks in masks.safetensors")


if __name__ == "__main__":
    main()
