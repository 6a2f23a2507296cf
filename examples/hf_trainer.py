"""Prune a small language model and fine-tune it under its masks with the Trainer of Hugging Face transformers."""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import prunekit
from prunekit.integrations.hugging_face import HoldMasks

TOKENS = 32


def sequences(seed: int, count: int) -> Tensor:
    """Return token sequences ``[count, 12]``, each rising by a constant step: two tokens determine the third."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(TOKENS, (count, 1), generator=generator)
    steps = torch.randint(1, 5, (count, 1), generator=generator)
    return (starts + steps * torch.arange(12)) % TOKENS


def train(model: LlamaForCausalLM, *callbacks: HoldMasks) -> None:
    """Train for a hundred steps; only the callback knows about masks."""
    data = [{"input_ids": row, "labels": row} for row in sequences(0, 3200)]
    arguments = TrainingArguments(
        "trainer",
        num_train_epochs=1,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks)).train()


def main() -> None:
    """Train, prune by neuron correlation, fine-tune under the masks, save."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=TOKENS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    )
    train(model)
    densities = {"*.mlp.*": 1 / 4, "*.self_attn.*": 1 / 2}
    masks = prunekit.select(model, "correlation", density=densities, batches=[sequences(1, 64)])
    train(model, HoldMasks(masks))
    masks.save("masks.safetensors")
    tokens = sequences(2, 256)
    with torch.no_grad():
        guesses = model(input_ids=tokens).logits[:, 1:-1].argmax(-1)
    accuracy = (guesses == tokens[:, 2:]).double().mean()
    print(f"density {masks.density():.4f}, accuracy {accuracy:.3f}, masks in masks.safetensors")


if __name__ == "__main__":
    main()
