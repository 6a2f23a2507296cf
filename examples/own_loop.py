"""Prune and fine-tune a model in a plain training loop: no task, no recipe, no run folder."""

import torch
from torch import nn
from torch.nn import functional as F

import prunekit


def images(generator: torch.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of noisy stripes ``[count, 1, 8, 8]``, and 1 for vertical or 0 for horizontal ones."""
    labels = torch.randint(2, (count,), generator=generator)
    stripes = (torch.arange(8) % 2).float().repeat(8, 1)
    clean = torch.where(labels[:, None, None].bool(), stripes, stripes.T)
    return clean[:, None] + torch.randn(count, 1, 8, 8, generator=generator), labels


def train(model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, steps: int) -> None:
    """Train for some steps, without any code for masks."""
    for _ in range(steps):
        batch, labels = images(generator, 64)
        optimizer.zero_grad()
        F.cross_entropy(model(batch), labels).backward()  # type: ignore[no-untyped-call] # torch's stubs
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def main() -> None:
    """Train, prune by neuron correlation, fine-tune under the masks, save."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    train(model, optimizer, generator, 100)
    calibration = [images(generator, 64) for _ in range(8)]
    masks = prunekit.select(model, "correlation", density={"0": 0.5, "3": 1 / 32}, batches=calibration)
    with masks.hold(model, optimizer):
        train(model, optimizer, generator, 100)
    masks.save("masks.safetensors")
    batch, labels = images(generator, 1000)
    accuracy = (model(batch).argmax(1) == labels).double().mean()
    print(f"density {masks.density():.4f}, accuracy {accuracy:.3f}, masks in masks.safetensors")


if __name__ == "__main__":
    main()
