"""The task ``deepid2plus``: face verification, assembled from network, signals, data and metrics.

This module must not know how any of these is computed.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from prunekit.contracts.evaluation import Evaluation
from prunekit.contracts.options import option
from prunekit.contracts.seeds import Seeds
from prunekit.contracts.task import Split, Task
from prunekit.contracts.training import Training
from prunekit.distributed.batch_shares import BatchShare
from prunekit.distributed.ranks import gather_samples
from prunekit_deepid2plus import embedded
from prunekit_deepid2plus.batches import Augmentation, BalancedBatches, PlainBatches, table_of
from prunekit_deepid2plus.comparable import Comparable, cosine
from prunekit_deepid2plus.comparison import joint_bayesian
from prunekit_deepid2plus.data import FaceData
from prunekit_deepid2plus.evaluation import evaluate_faces
from prunekit_deepid2plus.features import EVALUATION_BATCH, MIRRORS, face_features
from prunekit_deepid2plus.folders import read_folder
from prunekit_deepid2plus.network import POOLED, Network, NetworkSettings, activation_names
from prunekit_deepid2plus.patches import Patch, PatchedNetwork, is_whole_face, parse_patches, patch_activation_names
from prunekit_deepid2plus.presets import PRESETS
from prunekit_deepid2plus.signals import SupervisedNetwork, identification, verification

SIZES = {f"{rows}x{columns}": (rows, columns) for rows, columns in POOLED}
USUAL = SIZES["112x96"]
STAGES = ("1", "2", "3", "4", "5")


def _preset(text: str, **limits: Any) -> Any:
    """Declare an option whose default is the preset's value of the same name."""
    return option(None, f"{text}; default: the preset's", **limits)


@attrs.define(slots=False, eq=False)
class DeepID2Plus(Task):
    """Face verification with the DeepID2+ network, on drawn faces or on a folder with one folder per person."""

    name: ClassVar[str] = "deepid2plus"
    aliases: ClassVar[Mapping[str, str]] = {
        alias: f"*{layer}"  # one layer of one network, a layer in each of several
        for layer in activation_names()
        for alias in (layer, layer.removeprefix("conv").removeprefix("local"))
    }

    data: Path | None = option(None, "folder with one folder per person, or LFW; none: drawn faces")
    preset: str = option("tiny", "settings that go together; single ones override it", choices=tuple(PRESETS))
    width: float = _preset("fraction of the paper's channel counts", low=1 / 64, high=4)
    input_size: str = _preset("rows x columns of a face", choices=tuple(SIZES))
    patches: str = option("whole", "parts of the face, a network for each: 'whole eyes@120:grey nose'")
    feature: int = _preset("values of the face representation f, of each network", low=1)
    batch_norm: bool = option(True, "normalise after every layer (the paper does not)")
    feature_relu: bool = option(False, "rectify f")
    dropout: float = _preset("fraction of f hidden from identification in training", low=0, high=0.99)
    auxiliary: str = _preset("stages with signals of their own in training: '3 4', or '' for none")
    batch_people: int = _preset("people in a batch", low=2)
    batch_images: int = _preset("images of each of them", low=1)
    margin: float = _preset("distance wanted between features of two people", low=0)
    verification_weight: float = _preset("weight of the verification signal; identification has 1", low=0)
    learning_rate: float = _preset("base learning rate of SGD with Nesterov momentum 0.9", low=0)
    weight_decay: float = _preset("decay of all parameters", low=0)
    comparison: str = option("cosine", "how two faces are compared", choices=("cosine", "joint-bayesian"))
    pca: int = option(0, "principal components that joint-bayesian sees; 0: all that vary", low=0)
    mirror: str = option("mean", "what becomes of the features of a face and its mirror image", choices=MIRRORS)
    test_folds: str = option("", "LFW's folds to verify on: '7 8'; default: the last quarter")
    verify_on: Path | None = option(None, "InsightFace's .bin file of pairs to verify; all people of data then train")
    skip_unreadable: bool = option(False, "leave out images that cannot be read")
    data_seed: int = option(0, "draws the faces, or chooses a folder's test people, and the pairs", low=0)

    structure: str = attrs.field(init=False)
    settings: NetworkSettings = attrs.field(init=False)
    _patches: tuple[Patch, ...] = attrs.field(init=False)
    _faces: FaceData | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        preset = PRESETS[self.preset]
        self.structure = preset.structure
        self._patches = parse_patches(self.patches)
        for field in attrs.fields(DeepID2Plus):
            if field.init and getattr(self, field.name) is None and hasattr(preset, field.name):
                setattr(self, field.name, getattr(preset, field.name))
        for stage in self.auxiliary.split():
            if stage not in STAGES:
                raise ValueError(f"auxiliary names stage {stage!r}, expected stages among {' '.join(STAGES)}")
        if self.pca and self.comparison == "cosine":
            raise ValueError(f"pca is {self.pca}, but cosine has no PCA; set comparison to joint-bayesian too")
        if not all(fold.isascii() and fold.isdigit() for fold in self.test_folds.split()):
            raise ValueError(f"test_folds is {self.test_folds!r}, expected numbers such as '7 8'")
        if self.verify_on is not None and (self.data is None or self.test_folds):
            raise ValueError("verify_on needs data and excludes test_folds, because all people of data then train")
        size = SIZES[self.input_size]
        self.settings = NetworkSettings(self.width, self.feature, size, self.batch_norm, self.feature_relu)

    @property
    def face_size(self) -> tuple[int, int]:
        """Rows and columns of the faces; patches are cut from twice the input size, at most the usual crop."""
        rows, columns = SIZES[self.input_size]
        if is_whole_face(self._patches):
            return rows, columns
        return min(2 * rows, USUAL[0]), min(2 * columns, USUAL[1])

    def training(self) -> Training:
        preset = PRESETS[self.preset]
        return Training(
            budget=preset.budget,
            retraining=preset.retraining,
            retraining_rate=0.3,
            warmup=0.1,
            clip_norm=5.0 * math.sqrt(len(self._patches)),  # limits the joint gradient of all networks
            precision="bf16",
            channels_last=True,
        )

    def setup(self, seeds: Seeds) -> str:
        # Drawing faces takes time and cannot fail by a user error, so it waits for the first batch.
        if self.data is None:
            return embedded.DESCRIPTION
        folds = [int(fold) for fold in self.test_folds.split()]
        self._faces = read_folder(
            self.data,
            self.face_size,
            Seeds(self.data_seed),
            folds,
            self.verify_on,
            skip_unreadable=self.skip_unreadable,
        )
        return f"{self.data}: {self._faces}"

    @cached_property
    def faces(self) -> FaceData:
        """The data; embedded faces are drawn at the first access."""
        return self._faces or embedded.embedded_data(self.face_size, Seeds(self.data_seed))

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        return table_of(self.faces.train.people)

    def build_model(self) -> nn.Module:
        people = embedded.TRAIN.people if self._faces is None else self._faces.train.person_count
        whole = is_whole_face(self._patches)
        network = Network(self.settings) if whole else PatchedNetwork(self.settings, self._patches)
        return SupervisedNetwork(network, people, self.auxiliary.split(), self.dropout)

    def deployed(self, model: nn.Module) -> nn.Module:
        network: nn.Module = model.get_submodule("network")
        return network

    def activations(self, network: nn.Module) -> Mapping[str, str]:
        return activation_names() if is_whole_face(self._patches) else patch_activation_names(self._patches)

    def batches(self, split: Split, epoch: int, seeds: Seeds) -> Sequence[tuple[Tensor, Tensor]]:
        if split == "calibration":
            faces = self.faces.calibration
            return PlainBatches(faces.images, faces.people, EVALUATION_BATCH)
        images, (table, counts) = self.faces.train.images, self._table
        people = min(self.batch_people, len(counts))
        shift = Augmentation().shift * self.face_size[0] // SIZES[self.input_size][0]  # pixels of the network's input
        augmentation = Augmentation(shift=shift)
        return BalancedBatches(images, table, counts, people, self.batch_images, augmentation, epoch, seeds)

    def batch_share(self, batches: Sequence[tuple[Tensor, Tensor]], index: int, rank: int, ranks: int) -> BatchShare:
        if isinstance(batches, BalancedBatches):
            return batches.share(index, rank, ranks)
        return super().batch_share(batches, index, rank, ranks)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        features: Tensor = self.deployed(model)(batch[0])
        return features

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, people = batch
        everyone = gather_samples(people)  # pairs are formed within the whole batch, across ranks
        losses = [
            identification(scores, people)
            + self.verification_weight * verification(gather_samples(feature.float()), everyone, self.margin)
            for feature, scores in model(images)
        ]
        return torch.stack(losses).sum()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )

    def evaluate(self, model: nn.Module, device: torch.device) -> Evaluation:
        return evaluate_faces(comparable_test_faces(self, model, device), self.faces, Seeds(self.data_seed))


def comparable_test_faces(task: DeepID2Plus, model: nn.Module, device: torch.device) -> Comparable:
    """Return the test faces in comparable form; the comparison is fitted to the training people alone."""
    network, faces = task.deployed(model), task.faces
    tested = face_features(network, faces.test.images, task.mirror, device)
    if task.comparison == "cosine":
        return cosine(tested)
    known = face_features(network, faces.train.images, task.mirror, device)
    return joint_bayesian(known, faces.train.people, task.pca)(tested)
