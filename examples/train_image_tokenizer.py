# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[demo]"]
# ///
"""Train an image tokenizer in a loop of your own: photographs of scikit-image, or a folder of pictures.

python examples/train_image_tokenizer.py
python examples/train_image_tokenizer.py --pictures FOLDER --steps 5000
"""

import argparse
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from vpvae_hf import AutoencoderVP, fit_codebook
from vpvae_hf.data import center_crops, load_images, load_photographs, random_crops
from vpvae_hf.metrics import code_usage

CROP, BATCH, WARMUP, LEARNING_RATE = 32, 16, 30, 2e-3
HELD_OUT_CROP = 64  # a multiple of the factor; the model takes any size, so it need not be that of training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", help="a folder of pictures, or a hub id; default: photographs of scikit-image")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=Path("runs/examples/image_tokenizer"))
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training, held_out = pictures(options.pictures)
    batches = random_crops(training, size=CROP, batch_size=BATCH, seed=0)
    vae = build(options.codebook_size).to(device)
    train(vae, batches, options.steps)

    # The codebook is fitted after training, to latents of a fresh pass: only now is it known where they lie.
    print(fit_codebook(vae, random_crops(training, size=HELD_OUT_CROP, batch_size=BATCH, seed=1)))
    vae.eval()
    measure(vae, torch.cat(list(center_crops(held_out, size=HELD_OUT_CROP, batch_size=50))))
    vae.save_pretrained(options.output)
    print(f'Saved. Use it: AutoencoderVP.from_pretrained("{options.output}")')


def pictures(name: str | None) -> tuple[list, list]:
    """Pictures to train on, and pictures that are held out, so that the figure at the end is of unseen ones."""
    if name is None:
        return load_photographs()
    images = load_images(name, split="train", limit=1000, shortest_side=256)
    held_out = max(1, min(len(images) // 10, 20))
    if len(images) < 2:
        raise SystemExit(f"{name} has {len(images)} picture and one is held out; give at least 2")
    return images[:-held_out], images[-held_out:]


def build(codebook_size: int) -> AutoencoderVP:
    """0.7 million weights, a code for every 4 x 4 pixels."""
    return AutoencoderVP(
        patch_size=4,  # all layers work on patches of pixels, so that a step takes a sixteenth of the positions
        linear_shortcut=True,  # training starts from the discrete cosine transform instead of from nothing
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(64,),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=HELD_OUT_CROP,
        quantizer={
            "kind": "vp",
            "codebook_size": codebook_size,  # how far training moves latents; any size can be fitted afterwards
            "latent_dim": 4,
            "queue_share": 0.1,  # so short a run needs a queue that soon holds only latents of the present encoder
        },
    )


def train(vae: AutoencoderVP, batches, steps: int) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE)
    # Adam's first steps are as large as its later ones, though its estimates are poor: hence the warmup.
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    vae.train()
    with tqdm(total=steps, desc="Training", unit="step") as bar:
        for step, pixel_values in zip(range(steps), batches, strict=False):
            # Late in the run the quantizer draws latents to codes, so it must be told how much of the run is over.
            vae.quantize.set_progress(step / steps)
            pixel_values = pixel_values.to(vae.device)
            output = vae(pixel_values)
            difference = output.sample - pixel_values
            # Squared errors make colours appear sooner, absolute errors keep edges sharp.
            loss = difference.abs().mean() + 2 * difference.square().mean() + output.loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix_str(f"PSNR {psnr(output.sample.detach(), pixel_values):.2f} dB")


@torch.no_grad()
def measure(vae: AutoencoderVP, images: torch.Tensor) -> None:
    codes, decoded, continuous = [], [], []
    for batch in images.to(vae.device).split(BATCH):
        codes.append(vae.tokenize(batch))
        decoded.append(vae.detokenize(codes[-1]))
        continuous.append(vae.decode(vae.encode(batch).latents, force_not_quantize=True).sample)
    codes, images = torch.cat(codes), images.to(vae.device)
    print(f"PSNR of {len(images)} held-out crops, from codes: {psnr(torch.cat(decoded), images):.2f} dB")
    print(f"... from latents that are not quantized: {psnr(torch.cat(continuous), images):.2f} dB")
    print(f"Code usage, exp(entropy) / K: {code_usage(codes, vae.quantize.codebook_size):.3f}")


def psnr(reconstruction: torch.Tensor, original: torch.Tensor) -> float:
    """In dB, the mean over images [B, C, H, W] in [-1, 1]."""
    error = (reconstruction.clamp(-1, 1) - original).square().mean(dim=(1, 2, 3)) / 4
    return float(-10 * error.clamp(min=1e-10).log10().mean())


if __name__ == "__main__":
    main()
