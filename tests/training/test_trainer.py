"""The training loop alone, on batches in memory."""

import pytest
import torch
from accelerate import Accelerator

from tiny import FSP, GROUPED, VP, noise_images, tiny_vae
from vpvae_hf import AutoencoderVP
from vpvae_hf.modalities.config import LoopConfig
from vpvae_hf.training.trainer import Trainer

SHORT = {"max_train_steps": 12, "logging_steps": 4, "checkpointing_steps": 4, "validation_steps": 100}


def trainer_of(model, batches, output, **settings):
    how = {"losses": {"l1": lambda sample, original: (sample - original).abs().mean()}, "loss_weights": {"l1": 1.0}}
    config = LoopConfig(**SHORT | {"lr_warmup_steps": 1} | settings)
    return Trainer(model, batches, config, **how, accelerator=Accelerator(cpu=True), output=output)


@pytest.mark.parametrize("quantizer", [VP, GROUPED])
def test_bad_values_are_told_with_the_first_step_that_had_them(quantizer, tmp_path):
    """At the next row of metrics, before a checkpoint holds their effects."""
    batches = [noise_images(4, 16, 16, seed=seed) for seed in range(12)]
    batches[5][2, :, 3, 3] = torch.nan
    trainer = trainer_of(tiny_vae(quantizer), batches, tmp_path)
    with pytest.raises(ValueError, match=r"^step 6: some of 3072 pixel values are NaN or infinite; images lie in"):
        trainer.run()
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert trainer.step == 8
    assert [row["step"] for row in trainer.log.rows] == [4]
    kept = trainer.model.quantize.training_state
    assert kept is None or torch.isfinite(kept.state_dict()["queue"]["latents"]).all()


def test_codebooks_do_not_outlive_the_latents_that_they_are_of(tmp_path):
    vae = tiny_vae(VP)
    vae.set_codebooks([vae.quantize.codebook, torch.randn(8, 3)])
    trainer_of(vae, [noise_images(4, 16, 16)], None, max_train_steps=1).run()
    vae.save_pretrained(tmp_path)
    assert AutoencoderVP.from_pretrained(tmp_path).codebook_sizes == ()


def test_a_step_that_was_skipped_is_excused(tmp_path):
    """The scaler of float16 skips such a step and lowers its scale; the weights stay as they were."""
    batches = [noise_images(4, 16, 16, seed=seed) for seed in range(12)]
    batches[5][:] = torch.nan
    trainer = trainer_of(tiny_vae(FSP), batches, tmp_path)
    optimizer = trainer._optimizer
    step, done = optimizer.step, []

    def scaled_step(closure=None):
        done.append(None)
        optimizer._is_overflow = len(done) == 6
        if not optimizer._is_overflow:
            step(closure)

    optimizer.step = scaled_step
    assert [row["step"] for row in trainer.run().rows] == [4, 8, 12]
    assert all(torch.isfinite(weights).all() for weights in trainer.model.parameters())
