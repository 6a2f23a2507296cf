"""The two signals that train a face representation: identification and verification.

Sun, Wang, Tang (CVPR 2015): features are to tell the training people apart, and to be near for one person and
apart for two. Heads put both signals on f and on earlier stages; they serve training only. This module must not
know where images come from.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit_deepid2plus.network import Network, stage_values
from prunekit_deepid2plus.patches import PatchedNetwork


def identification(scores: Tensor, people: Tensor) -> Tensor:
    """Return the mean softmax cross-entropy of class scores ``[samples, people]``."""
    return nn.functional.cross_entropy(scores.float(), people)


def verification(features: Tensor, people: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss over all pairs of a batch.

    A pair costs ``1/2 ||fi - fj||^2`` for one person and ``1/2 max(0, margin - ||fi - fj||)^2`` for two; the loss is
    the mean over all pairs of two different images in the batch, so most of it is pairs of two people.

    Args:
        features: ``[samples, values]``.
        people: person numbers ``[samples]``, int64.
        margin: distance that two people are to have.
    """
    first, second = torch.triu_indices(len(people), len(people), offset=1, device=people.device)
    with torch.autocast(features.device.type, enabled=False):  # small differences of large products
        features = features.float()
        squared = features.square().sum(1)
        # From the matrix of products: a difference for each pair would take samples^2 * values memory.
        distances = torch.addmm(squared, features, features.T, alpha=-2) + squared[:, None]
    square = distances[first, second].clamp_min(1e-12)  # also keeps the root's gradient finite
    far = (margin - square.sqrt()).clamp_min(0).square()
    return torch.where(people[first] == people[second], square, far).mean() / 2


class SupervisedNetwork(nn.Module):
    """A network, or one for each patch, with its training-time heads.

    Every network has heads of its own. As the networks share nothing, the sum of all losses trains each as its own
    losses alone would.

    Args:
        network: the network that is deployed, in ``self.network``.
        people: training people, the classes of identification.
        auxiliary: stages ("1" to "5") that get a fully connected feature of their own, with both signals.
        dropout: fraction of a feature that identification does not see; verification sees all of it.
    """

    def __init__(
        self, network: Network | PatchedNetwork, people: int, auxiliary: Sequence[str] = (), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.network = network
        feature = network.settings.feature
        values = stage_values(network.settings)
        prefixes = [f"{name}/" for name in network.patches] if isinstance(network, PatchedNetwork) else [""]
        earlier = {prefix + stage: values[stage] for prefix in prefixes for stage in auxiliary}
        self.features = nn.ModuleDict({name: nn.Linear(count, feature) for name, count in earlier.items()})
        self.dropout = nn.Dropout(dropout)
        self.tops = [f"{prefix}f" for prefix in prefixes]
        self.classifiers = nn.ModuleDict({name: nn.Linear(feature, people) for name in (*self.tops, *earlier)})

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (feature, class scores) for f of each network and each supervised stage, f first."""
        stages = self.network.stages(images)
        features = {name: stages[name] for name in self.tops}
        features |= {name: head(stages[name].flatten(1)) for name, head in self.features.items()}
        return [
            (features[name], classifier(self.dropout(features[name]))) for name, classifier in self.classifiers.items()
        ]
