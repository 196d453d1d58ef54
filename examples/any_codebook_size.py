# /// script
# requires-python = ">=3.11"
# dependencies = ["vpvae_hf[demo]"]
# ///
"""One training, codebooks of several sizes, and codes that can be cut to fewer bits afterwards.

python examples/any_codebook_size.py
python examples/any_codebook_size.py --tokenizer FOLDER_OR_HUB_ID --codebook-sizes 64 1024  # fits, without training
"""

import argparse
import math
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from tqdm.auto import tqdm

from vpvae_hf import AutoencoderVP, fit_codebook
from vpvae_hf.data import center_crops, load_photographs, random_crops

CROP, BATCH, WARMUP, HELD_OUT_CROP = 32, 16, 30, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokenizer", help="folder or hub id of an image tokenizer; default: train one")
    parser.add_argument("--codebook-sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("runs/examples/any_size_tokenizer"))
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = sorted(options.codebook_sizes)
    training, held_out = load_photographs()
    if options.tokenizer is None:
        vae = build(sizes)
        train(vae, random_crops(training, size=CROP, batch_size=BATCH, seed=0), options.steps)
    else:
        vae = AutoencoderVP.from_pretrained(options.tokenizer)
    images = torch.cat(list(center_crops(held_out, size=HELD_OUT_CROP, batch_size=50)))

    fit_codebook(vae, random_crops(training, size=HELD_OUT_CROP, batch_size=BATCH, seed=1), codebook_size=sizes)
    vae.eval()
    print("\nIndependent codebooks of one model:")
    for size in sizes:
        vae.select_codebook(size)
        print(line(size, vae, [vae.tokenize(batch) for batch in images.split(BATCH)], images))

    # Each code of a smaller codebook is now divided into codes of the next larger one. That costs a little quality,
    # but coarser codes can be made from the finest ones without the encoder, e.g. by a server for a slow connection.
    crops = random_crops(training, size=HELD_OUT_CROP, batch_size=BATCH, seed=1)
    fit_codebook(vae, crops, codebook_size=sizes, nested=True)
    vae.eval()
    vae.select_codebook(sizes[-1])
    finest = [vae.tokenize(batch) for batch in images.split(BATCH)]
    print(f"\nNested codebooks, images encoded once with {sizes[-1]} codes:")
    for size in sizes:
        vae.select_codebook(sizes[-1])
        cut = [vae.coarser_codes(codes, size) if size < sizes[-1] else codes for codes in finest]
        vae.select_codebook(size)
        print(line(size, vae, cut, images))
    vae.save_pretrained(options.output)
    print(f'\nSaved all codebooks. Use one: AutoencoderVP.from_pretrained("{options.output}", codebook_size={size})')


def build(sizes: list[int]) -> AutoencoderVP:
    return AutoencoderVP(
        patch_size=4,
        linear_shortcut=True,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(64,),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        quantizer={
            "kind": "vp",
            "codebook_size": sizes[len(sizes) // 2],
            # Each step draws a size, so that the decoder learns displacements of all sizes. The range goes beyond
            # the largest size, since the smallest displacements would otherwise be rare.
            "codebook_size_range": [sizes[0], 4 * sizes[-1]],
            "latent_dim": 4,
            "queue_share": 0.5,  # the queue is as long as the largest size needs, and has to be full early in the run
        },
    )


def train(vae: AutoencoderVP, batches, steps: int) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    vae.train()
    for step, pixel_values in zip(tqdm(range(steps), desc="Training", unit="step"), batches, strict=False):
        vae.quantize.set_progress(step / steps)
        output = vae(pixel_values)
        difference = output.sample - pixel_values
        loss = difference.abs().mean() + 2 * difference.square().mean() + output.loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def line(size: int, vae: AutoencoderVP, codes: list[torch.Tensor], images: torch.Tensor) -> str:
    decoded = torch.cat([vae.detokenize(batch) for batch in codes]).clamp(-1, 1)
    error = (decoded - images).square().mean(dim=(1, 2, 3)) / 4
    bits = math.ceil(math.log2(size)) / vae.downsample_factor**2
    return f"  {size:>6} codes, {bits:.3f} bits per pixel: PSNR {float(-10 * error.log10().mean()):.2f} dB"


if __name__ == "__main__":
    main()
