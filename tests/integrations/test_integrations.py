"""Masks held by the adapters while the real trainers train small models."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import prunekit
from prunekit.errors import ConfigError, MaskError
from prunekit.integrations import accelerate, hugging_face, lightning

pytestmark = pytest.mark.thorough


class Multiplied(nn.Module):
    """The reference: the mask is multiplied in the forward pass."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask.to(torch.float32), persistent=False)

    def forward(self, weight):
        return weight * self.mask


def multiplied(model, masks):
    """Return a copy of a model that multiplies its weights by the masks."""
    model = copy.deepcopy(model)
    for name, mask in masks.tensors.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        parametrize.register_parametrization(layer, "weight", Multiplied(mask))
    return model


def assert_zeros(model, masks):
    for name, mask in masks.tensors.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight != 0, mask)
        assert not weight[~mask].signbit().any()


def assert_trained_alike(model, reference, masks):
    assert_zeros(model, masks)
    for name in masks.tensors:
        expected = reference.get_submodule(name.removesuffix(".weight")).weight
        torch.testing.assert_close(model.get_parameter(name).detach(), expected.detach(), rtol=1e-6, atol=1e-7)


class TestHuggingFace:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 40, "max_position_embeddings": 16}
        config = transformers.LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **sizes)
        return transformers.LlamaForCausalLM(config)

    @pytest.fixture
    def train(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(40, (12,), generator=generator) for _ in range(48)]
        data = [{"input_ids": row, "labels": row} for row in rows]

        def go(model, *callbacks, resume=None, **settings):
            settings = {"max_steps": 6, "save_strategy": "no", "learning_rate": 0.01, **settings}
            arguments = transformers.TrainingArguments(
                str(tmp_path / "trainer"),
                per_device_train_batch_size=4,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                **settings,
            )
            trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        return go

    @pytest.mark.parametrize(
        "settings",
        [
            {"optim": "adamw_torch_fused", "weight_decay": 0.1},
            {"optim": "adafactor"},
            {"optim": "sgd", "max_grad_norm": 0.01, "gradient_accumulation_steps": 2},
            {"optim": "adamw_torch", "activation_checkpointing": True, "bf16": True},
        ],
        ids=lambda settings: settings["optim"],
    )
    def test_zeros_are_exact_after_every_step(self, model, train, settings):
        masks = prunekit.select(model, density=0.25)
        steps = []

        class Look(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                assert_zeros(kwargs["model"], masks)
                steps.append(state.global_step)

        train(model, hugging_face.HoldMasks(masks), Look(), **settings)
        assert steps == [1, 2, 3, 4, 5, 6]
        assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())

    def test_clipping_and_accumulation_are_those_of_the_sparse_model(self, model, train):
        masks = prunekit.select(model, density=0.25)
        reference = multiplied(model, masks)
        settings = {"max_grad_norm": 0.05, "gradient_accumulation_steps": 3, "optim": "adamw_torch"}
        train(model, hugging_face.HoldMasks(masks), **settings)
        train(reference, **settings)
        assert_trained_alike(model, reference, masks)

    def test_a_checkpoint_of_the_trainer_goes_on_to_the_same_weights(self, model, train, tmp_path):
        masks = prunekit.select(model, density=0.25)
        resumed = copy.deepcopy(model)
        train(model, hugging_face.HoldMasks(masks), save_strategy="steps", save_steps=3)
        saved = tmp_path / "trainer" / "checkpoint-3"
        assert_zeros(transformers.LlamaForCausalLM.from_pretrained(saved), masks)
        train(resumed, hugging_face.HoldMasks(masks), resume=str(saved))
        assert_zeros(resumed, masks)
        for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_tied_weights_are_pruned_saved_and_read_as_one(self, model, train, tmp_path):
        model.config.tie_word_embeddings = True
        model.tie_weights()
        masks = prunekit.select(model, density={"lm_head": 0.25})
        train(model, hugging_face.HoldMasks(masks), save_strategy="steps", save_steps=6)
        saved = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "trainer" / "checkpoint-6")
        assert saved.lm_head.weight is saved.model.embed_tokens.weight
        assert torch.equal(saved.lm_head.weight, model.lm_head.weight)
        assert torch.equal(saved.lm_head.weight != 0, masks.tensors["lm_head.weight"])

    def test_a_dense_checkpoint_is_made_sparse_also_where_it_was_the_best(self, model, train, tmp_path):
        dense = copy.deepcopy(model)
        train(dense, save_strategy="steps", save_steps=2, max_steps=2)
        masks = prunekit.select(dense, density=0.25)
        train(model, hugging_face.HoldMasks(masks), resume=str(tmp_path / "trainer" / "checkpoint-2"))
        assert_zeros(model, masks)

    def test_the_training_after_one_that_broke_off_is_held_once(self, model, train):
        masks = prunekit.select(model, density=0.25)
        hold = hugging_face.HoldMasks(masks)

        class Break(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(model, hold, Break())
        train(model, hold)
        assert_zeros(model, masks)
        assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())

    def test_masks_that_do_not_fit_and_sharded_parameters_are_refused(self, model, train):
        masks = prunekit.Masks({"x.weight": torch.ones(2, 2, dtype=torch.bool)})
        with pytest.raises(MaskError, match=r"no parameter 'x.weight'"):
            train(model, hugging_face.HoldMasks(masks))
        arguments = transformers.TrainingArguments("unused", use_cpu=True, report_to="none")
        arguments.deepspeed = "zero3.json"
        with pytest.raises(ConfigError, match="train without fsdp and deepspeed"):
            hugging_face.HoldMasks(masks).on_init_end(arguments, None, None)


class Classifier(pl.LightningModule):
    def __init__(self, optimizers=1):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self):
        layers = [self.network] if self.count == 1 else [self.network[0], self.network[2]]
        return [torch.optim.AdamW(layer.parameters(), lr=0.02, weight_decay=0.1) for layer in layers]


class TestLightning:
    @pytest.fixture
    def train(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        inputs, labels = torch.randn(48, 8, generator=generator), torch.randint(3, (48,), generator=generator)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=4)

        def go(module, *callbacks, resume=None, **settings):
            trainer = pl.Trainer(
                accelerator="cpu",
                callbacks=list(callbacks),
                default_root_dir=tmp_path,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **{"max_epochs": 2, "enable_checkpointing": False, **settings},
            )
            trainer.fit(module, loader, ckpt_path=resume)
            return trainer

        return go

    @pytest.fixture
    def module(self):
        torch.manual_seed(0)
        return Classifier()

    @pytest.mark.parametrize("optimizers", [1, 2])
    def test_zeros_are_exact_after_every_step(self, train, optimizers):
        torch.manual_seed(0)
        module = Classifier(optimizers)
        masks = prunekit.select(module, density=0.25)
        steps = []

        class Look(pl.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                assert_zeros(module, masks)
                steps.append(index)

        train(module, lightning.HoldMasks(masks), Look())
        assert len(steps) == 24
        assert all(not parameter._post_accumulate_grad_hooks for parameter in module.parameters())

    def test_clipping_and_accumulation_are_those_of_the_sparse_model(self, module, train):
        masks = prunekit.select(module, density=0.25)
        reference = multiplied(module, masks)
        settings = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 3}
        train(module, lightning.HoldMasks(masks), **settings)
        train(reference, **settings)
        assert_trained_alike(module, reference, masks)

    def test_a_checkpoint_of_the_trainer_goes_on_to_the_same_weights(self, module, train, tmp_path):
        masks = prunekit.select(module, density=0.25)
        resumed = copy.deepcopy(module)
        train(module, lightning.HoldMasks(masks), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
        saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
        for name, mask in masks.tensors.items():
            assert torch.equal(saved[name] != 0, mask)
        whole = copy.deepcopy(resumed)
        train(whole, lightning.HoldMasks(masks))
        train(resumed, lightning.HoldMasks(masks), resume=tmp_path / "half.ckpt")
        assert_zeros(resumed, masks)
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_an_error_in_training_leaves_nothing_behind(self, module, train):
        class Break(pl.Callback):
            def on_train_batch_end(self, *_):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train(module, lightning.HoldMasks(prunekit.select(module, density=0.25)), Break())
        assert all(not parameter._post_accumulate_grad_hooks for parameter in module.parameters())

    def test_sharded_parameters_are_refused(self, module, train):
        hold = lightning.HoldMasks(prunekit.select(module, density=0.25))
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.__class__ = FSDPStrategy
        with pytest.raises(ConfigError, match="sharded by FSDPStrategy; train with another"):
            hold.setup(trainer, module, "fit")


class TestAccelerate:
    @pytest.fixture
    def data(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(48, 8, generator=generator), torch.randint(3, (48,), generator=generator)

    @pytest.fixture
    def accelerator(self, tmp_path):
        yield Accelerator(cpu=True, gradient_accumulation_steps=3, project_dir=tmp_path)
        AcceleratorState._reset_state(reset_partial_state=True)

    def prepare(self, accelerator, data, model):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=4)
        return accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.02), loader)

    def train(self, accelerator, model, optimizer, loader, masks=None):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(inputs), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                optimizer.zero_grad()
            if masks:
                assert_zeros(model, masks)

    @pytest.fixture
    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def test_clipping_and_accumulation_are_those_of_the_sparse_model(self, accelerator, data, network):
        masks = prunekit.select(network, density=0.25)
        reference = multiplied(network, masks)
        model, optimizer, loader = self.prepare(accelerator, data, network)
        with accelerate.hold(accelerator, masks, model, optimizer):
            self.train(accelerator, model, optimizer, loader, masks)
        self.train(accelerator, *self.prepare(accelerator, data, reference))
        assert_trained_alike(network, reference, masks)
        assert all(not parameter._post_accumulate_grad_hooks for parameter in network.parameters())

    def test_a_state_that_is_loaded_keeps_zeros_even_if_it_was_dense(self, accelerator, data, network, tmp_path):
        masks = prunekit.select(network, density=0.25)
        model, optimizer, loader = self.prepare(accelerator, data, network)
        self.train(accelerator, model, optimizer, loader)
        accelerator.save_state(tmp_path / "dense")
        with accelerate.hold(accelerator, masks, model, optimizer):
            accelerator.save_state(tmp_path / "sparse")
            accelerator.load_state(tmp_path / "dense")
            assert_zeros(model, masks)
            self.train(accelerator, model, optimizer, loader, masks)
        accelerator.load_state(tmp_path / "sparse")
        assert_zeros(model, masks)

    def test_sharded_parameters_are_refused(self, accelerator, network):
        accelerator.state.distributed_type = DistributedType.FSDP
        with pytest.raises(ConfigError, match="sharded by FSDP; configure Accelerate without it"):
            accelerate.hold(accelerator, prunekit.select(network, density=0.5), network, None)
