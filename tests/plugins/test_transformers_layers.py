import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

import prunekit
from prunekit.deployment.shrinking import shrink
from prunekit.plugins.transformers_layers import prunekit_layer_views


def test_a_transposed_layer_is_pruned_like_the_linear_layer_it_is():
    torch.manual_seed(0)
    transposed, linear = nn.Sequential(Conv1D(6, 8)), nn.Sequential(nn.Linear(8, 6))
    linear[0].weight.data = transposed[0].weight.data.t().contiguous()
    batches = [torch.randn(50, 3, 8)]
    for criterion, scope in (
        ("magnitude", "unit"),
        ("magnitude", "layer"),
        ("random", "layer"),
        ("correlation", "unit"),
    ):
        first, second = (
            prunekit.select(model, criterion, density=0.25, scope=scope, batches=batches)
            for model in (transposed, linear)
        )
        assert torch.equal(first.tensors["0.weight"], second.tensors["0.weight"].t())
    assert prunekit_layer_views(nn.Linear(2, 2)) is None


def test_dropped_weights_of_gpt_2_remain_zero_in_training_and_through_a_file(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **sizes)
    model = transformers.GPT2LMHeadModel(config)
    masks = prunekit.select(model, density={"*.c_*": 0.25})
    assert len(masks.tensors) == 4
    masks.save(tmp_path / "masks.safetensors")
    masks = prunekit.load_masks(tmp_path / "masks.safetensors")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.randint(20, (4, 8))
    with masks.hold(model, optimizer):
        for _ in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, mask in masks.tensors.items():
                assert torch.equal(model.get_parameter(name) != 0, mask)


def test_transposed_layers_shrink_like_linear_ones():
    torch.manual_seed(0)
    network = nn.Sequential(Conv1D(6, 8), nn.ReLU(), Conv1D(3, 6)).double().requires_grad_(requires_grad=False)
    network[0].weight[:, :2] = 0
    network[0].bias[:2] = 1
    inputs = torch.randn(4, 5, 8, dtype=torch.float64)
    shrunk = shrink(network, inputs)
    assert shrunk.network[0].weight.shape == (8, 4)
    torch.testing.assert_close(shrunk.network(inputs), network(inputs))
