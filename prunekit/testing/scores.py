"""The scores that a criterion gives to the layers of a model, without pruning it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from prunekit.contracts.criterion import Criterion
from prunekit.contracts.seeds import Seeds
from prunekit.distributed.dtensor import reshard
from prunekit.layers.lookup import find_layers
from prunekit.plugins.manager import installed_views
from prunekit.pruning.evidence import Forward, Loss, batch_evidence, undisturbed
from prunekit.pruning.layer_passes import UpdatedLayer, score
from prunekit.pruning.observing import observe


def scores_of(
    criterion: Callable[[], Criterion],
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    loss: Loss | None = None,
    forward: Forward | None = None,
    activations: Mapping[str, str] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the scores that a criterion gives to each prunable layer of a model.

        model = nn.Sequential(nn.Linear(3, 2))
        scores = scores_of(Wanda, model, [torch.randn(8, 3)])
        scores["0"]  # float, [1, 2, 3]: groups, outputs, fan

    The criterion observes and scores as in a mask update. The model is run in evaluation mode and left unchanged, its
    ``.grad`` included.

    Args:
        criterion: a criterion class, or any callable that returns a fresh criterion.
        model: any module with layers that prunekit or an installed plugin can prune.
        batches: for a criterion that needs data: a list or a loader, read once for each pass.
        loss: for a criterion that needs gradients: ``loss(model, batch)`` returns a scalar.
        forward: runs the model on a batch; ``None``: ``model(batch)``, or its first entry if it is a tuple or list.
        activations: layer -> module whose output is the layer's activation; other layers use their own output.
        masks: layer -> current mask, bool of the weight's shape; a layer without an entry is dense.
        seed: the seed of criteria that draw random numbers.

    Returns:
        Layer -> scores, float ``[G, out, fan]`` as ``Criterion.score`` returns them, higher = keep.
        ``find_layers(model)[layer].from_matrix(scores)`` has the weight's shape.

    Raises:
        ConfigError: the criterion needs data, a loss or training that is not given.
        DataError: values that the criterion cannot use.
        PluginError: the criterion returns NaN, or anything but floats of the layer's shape.
    """
    layers = find_layers(model, installed_views())
    current = {name: layers[name].to_matrix(mask) for name, mask in (masks or {}).items()}
    criteria = {name: criterion() for name in layers}
    with undisturbed(model):
        evidence = batch_evidence(model, batches, loss=loss, forward=forward, activation_of=activations)
        observe(model, layers, criteria, current, evidence)
        reshard(model)
        return {
            name: score(
                UpdatedLayer(name, view, criteria[name], current.get(name), Seeds(seed).generator("selection", name))
            )
            for name, view in layers.items()
        }
