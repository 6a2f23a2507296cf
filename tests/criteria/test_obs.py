import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit.criteria import obs
from prunekit.criteria.obs import BlockedObs
from prunekit.layers.lookup import find_layers
from prunekit.pruning.evidence import batch_evidence
from prunekit.pruning.observing import observe


def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def observed(model, batches, **options):
    """Return the criteria of all layers after the batches."""
    layers = find_layers(model)
    criteria = {name: BlockedObs(**options) for name in layers}
    observe(model, layers, criteria, {}, batch_evidence(model, batches, loss=loss))
    return layers, criteria


def fishers(model, batches, block, damping):
    """Yield layer, group, unit, block of columns and its Fisher matrix: one block, one batch after another."""
    gradients = []
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        gradients.append({name: view.to_matrix(view.weight.grad).clone() for name, view in find_layers(model).items()})
    model.zero_grad()
    for name, view in find_layers(model).items():
        for group in range(view.groups):
            for unit in range(view.outputs):
                for start in range(0, view.fan, block):
                    columns = slice(start, min(start + block, view.fan))
                    fisher = damping * torch.eye(columns.stop - start, dtype=torch.float64)
                    for gradient in gradients:
                        part = gradient[name][group, unit, columns]
                        fisher += torch.outer(part, part) / len(batches)
                    yield name, group, unit, columns, fisher


@pytest.mark.parametrize(("block", "size"), [(1, 2**26), (7, 2000), (50, 2**26)])
def test_saliencies_match_the_paper(block, size, mixed_network, labelled_batches, scores_of, monkeypatch):
    monkeypatch.setattr(obs, "_BYTES", size)
    scores = scores_of(lambda: BlockedObs(block=block, damping=1e-4), mixed_network, labelled_batches)
    for name, group, unit, columns, fisher in fishers(mixed_network, labelled_batches, block, 1e-4):
        view = find_layers(mixed_network)[name]
        weight = view.to_matrix(view.weight.detach())[group, unit, columns]
        expected = weight**2 / (2 * fisher.inverse().diagonal())
        torch.testing.assert_close(scores[name][group, unit, columns], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("block", [1, 7, 50])
def test_kept_weights_are_updated_by_the_optimal_step_of_the_paper(block, mixed_network, labelled_batches):
    layers, criteria = observed(mixed_network, labelled_batches, block=block, damping=1e-4)
    generator = torch.Generator().manual_seed(2)
    weights = {name: view.to_matrix(view.weight.detach()) for name, view in layers.items()}
    masks = {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in weights.items()}
    repaired = {name: criteria[name].reconstruct(weights[name], masks[name]) for name in layers}
    for name, group, unit, columns, fisher in fishers(mixed_network, labelled_batches, block, 1e-4):
        weight, inverse = weights[name][group, unit, columns], fisher.inverse()
        dropped = (~masks[name][group, unit, columns]).nonzero().flatten()
        step = -inverse[:, dropped] @ inverse[dropped][:, dropped].inverse() @ weight[dropped]
        expected = weight + step
        expected[dropped] = 0
        torch.testing.assert_close(repaired[name][group, unit, columns], expected, rtol=1e-6, atol=1e-9)
    assert all(not repaired[name][~mask].any() for name, mask in masks.items())


def test_the_step_under_an_earlier_mask_is_that_of_the_network_without_the_dropped_weights(
    mixed_network, labelled_batches
):
    """The step for a set with weights dropped before keeps those at zero and is optimal for all others."""
    with torch.no_grad():
        mixed_network[5].weight[:, ::3] = 0
    layers, criteria = observed(mixed_network, labelled_batches, damping=1e-4)
    weight = layers["5"].weight.detach()[None]
    mask = (weight != 0) & (torch.arange(24) % 2 == 0)
    repaired = criteria["5"].reconstruct(weight, mask)
    alive = torch.arange(24) % 3 != 0
    for name, _, unit, _, fisher in fishers(mixed_network, labelled_batches, 50, 1e-4):
        if name == "5":
            inverse, kept, row = fisher[alive][:, alive].inverse(), mask[0, unit, alive], weight[0, unit, alive]
            step = -inverse[:, ~kept] @ inverse[~kept][:, ~kept].inverse() @ row[~kept]
            expected = torch.where(kept, row + step, 0.0)
            torch.testing.assert_close(repaired[0, unit, alive], expected, rtol=1e-6, atol=1e-9)
    scores = criteria["5"].score(weight, torch.Generator())
    assert not scores[weight == 0].any()


def test_the_step_lowers_the_loss_of_a_pruned_linear_regression():
    """Where the loss is quadratic and the Fisher matrix its Hessian, the repaired weights are optimal."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 1, bias=False)).double()
    target = model(inputs).detach() + torch.randn(200, 1, dtype=torch.float64)
    best = torch.linalg.lstsq(inputs, target).solution
    with torch.no_grad():
        model[0].weight.copy_(best.T)
    # Residuals of +-1 make g g^T the outer product of the inputs: F is the Hessian of half the squared error.
    signs = torch.where(torch.rand(200, 1) < 0.5, -1.0, 1.0).double()

    def unit_error(model, batch):
        return (model(batch[0]) * batch[1]).sum()

    layers = find_layers(model)
    batches = list(zip(inputs.split(1), signs.split(1), strict=True))
    criterion = BlockedObs(damping=1e-12)
    observe(model, layers, {"0": criterion}, {}, batch_evidence(model, batches, loss=unit_error))
    mask = torch.tensor([[[True, False, True, True, False, True]]])
    repaired = criterion.reconstruct(layers["0"].weight.detach()[None], mask)
    expected = torch.linalg.lstsq(inputs[:, mask.flatten()], target).solution
    torch.testing.assert_close(repaired[mask], expected.flatten(), rtol=1e-8, atol=0)


def test_the_order_of_batches_does_not_matter(mixed_network, labelled_batches, scores_of):
    scores = scores_of(BlockedObs, mixed_network, labelled_batches)
    for name, score in scores_of(BlockedObs, mixed_network, labelled_batches[::-1]).items():
        torch.testing.assert_close(score, scores[name], rtol=1e-6, atol=0)
