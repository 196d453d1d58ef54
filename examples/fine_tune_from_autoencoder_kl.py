# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[demo]"]
# ///
"""Turn a diffusers AutoencoderKL into a discrete tokenizer by training it further, in a loop with accelerate.

python examples/fine_tune_from_autoencoder_kl.py                                # a tiny random start, for a try
accelerate launch examples/fine_tune_from_autoencoder_kl.py --start HUB_ID_OR_FOLDER --pictures FOLDER
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from vpvae_hf import AutoencoderVP, fit_codebook
from vpvae_hf.data import center_crops, load_images, load_photographs, random_crops

CROP, BATCH, WARMUP, HELD_OUT_CROP = 64, 8, 20, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--start", help="hub id or folder of an AutoencoderKL; default: a tiny one of random weights")
    parser.add_argument("--subfolder", help="folder of the AutoencoderKL within --start, e.g. vae of a pipeline")
    parser.add_argument("--pictures", help="a folder of pictures, or a hub id; default: photographs of scikit-image")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, help="default: 1e-4, for a random start 2e-3")
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/examples/fine_tuned_tokenizer"))
    options = parser.parse_args()
    accelerator = Accelerator()
    set_seed(0)
    vae, learning_rate = start(options, accelerator)
    if options.pictures is None:
        training, held_out = load_photographs()
    else:
        training = load_images(options.pictures, split="train", limit=1000, shortest_side=256)
        if len(training) < 2:
            raise SystemExit(f"{options.pictures} has one picture and one is held out; give at least 2")
        training, held_out = training[1:], training[:1]
    # Each rank has crops of its own; the quantizer's queue of recent latents is shared by all.
    rank = accelerator.process_index
    batches = random_crops(training, size=CROP, batch_size=BATCH, seed=rank)
    # A trained start has much to lose, hence a small rate, and a warmup while the new bottleneck settles.
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, options.steps)
    model, optimizer = accelerator.prepare(vae.train(), optimizer)
    shown = accelerator.is_main_process
    with tqdm(total=options.steps, desc="Training", unit="step", disable=not shown) as bar:
        for step, pixel_values in zip(range(options.steps), batches, strict=False):
            vae.quantize.set_progress(step / options.steps)
            pixel_values = pixel_values.to(accelerator.device)
            output = model(pixel_values)
            difference = output.sample - pixel_values
            loss = difference.abs().mean() + 2 * difference.square().mean() + output.loss
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()  # not prepared: accelerate would advance it once for each rank
            bar.update()
            if step % 20 == 0:
                bar.set_postfix_str(f"loss {loss.detach():.3f}")

    # On all ranks together: each gives a part of the latents, and all end with the same codebook.
    fit = fit_codebook(model, random_crops(training, size=CROP, batch_size=BATCH, seed=1000 + rank))
    if accelerator.is_main_process:
        print(fit)
        vae.eval()
        measure(vae, torch.cat(list(center_crops(held_out, size=HELD_OUT_CROP, batch_size=50))))
        vae.save_pretrained(options.output)
        print(f'Saved. Use it: AutoencoderVP.from_pretrained("{options.output}")')
    accelerator.end_training()


def start(options: argparse.Namespace, accelerator: Accelerator) -> tuple[AutoencoderVP, float]:
    """The model, and the learning rate that suits it."""
    if options.start is None:
        accelerator.print("No --start: training from a tiny AutoencoderKL of random weights, to try this out.")
        kl = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=4,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )
    else:
        kl = AutoencoderKL.from_pretrained(options.start, subfolder=options.subfolder)
    # If there are as many dimensions as the start has channels, its projections are kept, and so are its images.
    # Starts of 16 channels get 8 dimensions and new projections: in 16, so few codes would lie far from most latents.
    quantizer = {"kind": "vp", "codebook_size": options.codebook_size, "queue_share": 0.1}
    vae = AutoencoderVP.from_autoencoder_kl(kl, quantizer | {"latent_dim": min(8, kl.config.latent_channels)})
    return vae, options.learning_rate or (2e-3 if options.start is None else 1e-4)


@torch.no_grad()
def measure(vae: AutoencoderVP, images: torch.Tensor) -> None:
    ways = {"from codes": [], "from latents that are not quantized": []}
    for batch in images.to(vae.device).split(BATCH):
        ways["from codes"].append(vae.detokenize(vae.tokenize(batch)))
        latents = vae.encode(batch).latents
        ways["from latents that are not quantized"].append(vae.decode(latents, force_not_quantize=True).sample)
    for way, decoded in ways.items():
        error = (torch.cat(decoded).clamp(-1, 1) - images.to(vae.device)).square().mean(dim=(1, 2, 3)) / 4
        print(f"PSNR of {len(images)} held-out crops, {way}: {float(-10 * error.log10().mean()):.2f} dB")


if __name__ == "__main__":
    main()
