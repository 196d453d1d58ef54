"""`vpvae evaluate`: what a saved tokenizer keeps of a data set's images."""

import argparse
from pathlib import Path

import torch

from vpvae_hf import AutoencoderVP
from vpvae_hf.evaluation import evaluate_reconstruction
from vpvae_hf.hub import read_results, write_results

from .images import add_data_options, crops


def add_parser(commands) -> None:
    """Add `evaluate` to the subcommands."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a saved tokenizer on a data set",
        description="Measure PSNR, SSIM and code usage on centre crops of every image of a split.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("tokenizer", help="folder or hub id")
    parser.add_argument("--lpips", action="store_true", help="measure LPIPS (VGG) too; needs torchvision")
    parser.add_argument("--save", action="store_true", help="add the result to the folder's results and model card")
    add_data_options(parser, split="validation")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    folder = Path(options.tokenizer)
    if options.save and not folder.is_dir():
        raise FileNotFoundError(f"--save needs a local folder, got {options.tokenizer}; download the tokenizer first")
    model = AutoencoderVP.from_pretrained(options.tokenizer).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    quality = evaluate_reconstruction(model, crops(options, model, random=False, passes=1), lpips=options.lpips)
    print(f"{options.dataset}, {options.split}: {quality.images} images, {quality.tokens} tokens")
    print(f"  PSNR                     {quality.psnr:.2f} dB ({quality.psnr_unquantized:.2f} dB not quantized)")
    print(f"  SSIM                     {quality.ssim:.4f}")
    if quality.lpips is not None:
        print(f"  LPIPS                    {quality.lpips:.4f}")
    print(f"  code usage (CVU)         {quality.code_usage:.4f}")
    print(f"  quantization error, RMS  {quality.quantization_error_rms:.4f}")
    if options.save:
        entry = {"dataset": options.dataset, "split": options.split, "images": quality.images}
        results = read_results(folder)
        same = (options.dataset, options.split)
        others = [old for old in results.get("evaluation", []) if (old["dataset"], old["split"]) != same]
        results["evaluation"] = [*others, entry | {"tokens": quality.tokens, "metrics": quality.figures()}]
        write_results(folder, results)
        print(f"added to the results and the model card in {folder}")
