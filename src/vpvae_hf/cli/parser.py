"""The commands and their options. Nothing heavy is imported here, so that help and error messages appear at once."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from vpvae_hf import __version__
from vpvae_hf.settings import DTYPES, Metric, Perturbation, did_you_mean

_TOKENIZER = "folder, hub id, or name of a tokenizer that comes with the package: image or speech"
_SIGNALS = (
    "picture, sound, folder of them, or pattern; in folders, files that vpvae decode and reconstruct wrote are skipped"
)
_DEVICE = "e.g. cpu, cuda or cuda:1; default: a GPU if there is one"
_QUIET = "no progress bars"
DEMO_STEPS = {"image": 600, "audio": 400}
_REVISION = "branch, tag or commit of the tokenizer"


class _Parser(argparse.ArgumentParser):
    """A parser that reports mistyped names first; argparse would first report required options as missing."""

    def parse_known_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None):
        commands = next((action for action in self._actions if isinstance(action, argparse._SubParsersAction)), None)
        options = [name for name in self._option_string_actions if name.startswith("--")]
        for argument in args:
            name = argument.partition("=")[0]
            if name == "--":
                break
            if any(action.nargs == argparse.REMAINDER for action in self._actions):
                break  # the rest is checked elsewhere
            if name.startswith("--") and not any(known.startswith(name) for known in options):
                self.error(f"there is no option {name}; {did_you_mean(name, options)}")
            if commands is not None and not name.startswith("-"):
                if name not in commands.choices:
                    self.error(f"there is no command {name}; {did_you_mean(name, commands.choices)}")
                break  # the rest belongs to the command
        return super().parse_known_args(args, namespace)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default unless it is None, False or an empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `vpvae`. Parsed options have `run`: the "module:function" of `vpvae_hf.cli` to call with them."""
    parser = _Parser(prog="vpvae", description="Discrete tokens from images and audio: train, fit, use.")
    parser.add_argument("--version", action="version", version=f"vpvae_hf {__version__}")
    parser.add_argument("--quiet", action="store_true", help=_QUIET)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    own_files = (_add_app, _add_encode, _add_decode, _add_reconstruct)
    for add in (_add_demo, *own_files, _add_info, _add_train, _add_fit, _add_evaluate, _add_tokenize):
        add(commands)
    for add in (_add_generate, _add_push, _add_push_space, _add_compare):
        add(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "demo",
        "train a small tokenizer on photographs or sounds, fit its codebook, and show what it does",
        "Train a small tokenizer on photographs, or on sounds, in a few minutes on a CPU, fit its codebook, "
        "evaluate it on held-out data, and save it.",
    )
    parser.add_argument("--modality", choices=tuple(DEMO_STEPS), default="image", help="kind of data to train on")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="write into an output folder that has files")
    parser.add_argument("--quantizer", choices=("vp", "fsp"), default="vp", help="kind of quantizer")
    kinds = get_args(Perturbation)
    parser.add_argument("--perturbation", choices=kinds, default=kinds[0], help="how vp perturbs latents in training")
    parser.add_argument("--codebook-size", type=_positive, default=1024, help="number of codes")
    steps = "training steps; default: " + ", ".join(f"{steps} for {name}" for name, steps in DEMO_STEPS.items())
    parser.add_argument("--steps", type=_positive, help=steps)
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, crops, perturbations and codebook")
    data = (
        "hub id or folder of a data set of images or audio; default: photographs from scikit-image and scikit-learn, "
        "or synthesized voices"
    )
    parser.add_argument("--dataset", type=os.path.expanduser, help=data)
    column = "column of the data set that holds the images or the audio; default: the only one"
    parser.add_argument("--column", help=column)


def _add_app(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "app",
        "try a tokenizer in the browser",
        "Serve a page that encodes and decodes pictures or sounds and shows their codes, which can be replaced, "
        "downloaded and loaded again. No data leave the computer that serves the page.",
    )
    _add_page_tokenizers(parser)
    parser.add_argument("--device", help=_DEVICE)
    parser.add_argument("--host", help="address to listen on, e.g. 0.0.0.0; default: only for this computer")
    parser.add_argument("--port", type=_positive, help="port; default: the first free one from 7860 on")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "train",
        "train a tokenizer with the settings of a recipe",
        "Train a tokenizer on a data set or a folder of files, fit its codebook and measure it, e.g. vpvae train image "
        "--config small --data.name FOLDER. vpvae train image --help lists the recipes and all settings. For "
        "several GPUs start it with accelerate launch -m vpvae_hf train.",
    )
    parser.add_argument("modality", help="kind of data to train on: image or audio")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help="--config NAME, and any settings as --KEY VALUE")


def _add_info(commands: argparse._SubParsersAction) -> None:
    description = "Print what the folder of a saved tokenizer holds: model, codebooks, training and metrics."
    parser = _add_command(commands, "info", "show what a saved tokenizer is", description)
    parser.add_argument("folder", type=os.path.expanduser, help="folder that save_pretrained wrote, or image or speech")


def _add_fit(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "fit",
        "fit a codebook to a saved tokenizer",
        "Encode random crops or segments of a data set with a saved tokenizer, cluster the latents, and "
        "save the tokenizer with that codebook in another folder. For the kinds fsp and fsq, fit the levels.",
    )
    parser.add_argument("tokenizer", type=os.path.expanduser, help=_TOKENIZER)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tokenizer with its new codebook")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that has files")
    sizes = "number of codes; several numbers fit one codebook each; default: that of the tokenizer's selected codebook"
    parser.add_argument("--codebook-size", type=int, nargs="+", metavar="K", help=sizes)
    parser.add_argument(
        "--latents-per-code",
        type=int,
        default=256,
        help="fresh latents to fit to, per code of the largest codebook",
    )
    metric = "distance between latents: euclidean, or decoder: by how much the decoder's output changes"
    parser.add_argument("--metric", choices=get_args(Metric), default="euclidean", help=metric)
    nested = "nest the codebooks: codes of a larger one can be cut to codes of a smaller one"
    parser.add_argument("--nested", action="store_true", help=nested)
    parser.add_argument("--seed", type=int, default=0, help="seed of crops or segments, and of K-means")
    split = "split to read; default: train; of a folder without splits, the files that are not set aside for validation"
    _add_data_options(parser, None, split)
    _add_share_option(parser)
    _add_execution_options(parser, "read at most this many images or clips")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "evaluate",
        "measure a saved tokenizer on a data set",
        "Measure PSNR, SSIM and code usage on centre crops of every image of a split, or PESQ, STOI, mel "
        "distance and code usage on every clip of audio.",
    )
    parser.add_argument("tokenizer", type=os.path.expanduser, help=_TOKENIZER)
    parser.add_argument("--lpips", action="store_true", help="also measure LPIPS (VGG); needs torchvision")
    network = "also measure the distance of a network's features: efficientnet-lite0, or a backbone's folder or hub id"
    parser.add_argument("--features", type=os.path.expanduser, metavar="NETWORK", help=network)
    both = "also measure the Fréchet distance between the features of all images and of all reconstructions"
    parser.add_argument("--frechet", type=os.path.expanduser, metavar="NETWORK", help=both)
    _add_code_options(parser)
    parser.add_argument("--save", action="store_true", help="add the result to the folder's results and model card")
    _add_data_options(parser, "validation")
    _add_share_option(parser)
    _add_execution_options(parser, "measure only the first LIMIT images or clips")


def _add_tokenize(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "tokenize",
        "write a data set's codes to Parquet files",
        "Encode every image of a split, scaled and cropped at its centre, or every clip of audio, and "
        "write the codes with the data set's other columns to Parquet files, which datasets.load_dataset reads. "
        "Start an interrupted run again to continue it. For several GPUs start it with accelerate launch -m vpvae_hf "
        "tokenize.",
    )
    parser.add_argument("tokenizer", type=os.path.expanduser, help=_TOKENIZER)
    parser.add_argument("--revision", help=_REVISION)
    _add_data_options(parser, "train")
    _add_share_option(parser, "0")
    parser.add_argument("--no-streaming", action="store_true", help="download and prepare the data set first")
    parser.add_argument("--output", type=Path, default=Path("tokenized"), help="folder for the files")
    _add_code_options(parser)
    _add_execution_options(parser, "encode only the first LIMIT images or clips; unreadable ones count")
    exact = "make codes depend as little as possible on the device: float32 without TF32, deterministic kernels"
    parser.add_argument("--exact", action="store_true", help=exact)


def _add_encode(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "encode",
        "turn pictures and sounds into files of codes",
        "Encode pictures and sounds of any size and rate, and write the codes of each to a safetensors file, from "
        "which `vpvae decode` restores it. Sounds are resampled and their channels averaged if necessary.",
        run="own_files:encode",
        aliases=["encode-audio"],
    )
    _add_own_files(parser, _SIGNALS, "file or folder for codes")
    _add_code_options(parser)
    packing = parser.add_mutually_exclusive_group()
    bits, entropy = "store ceil(log2 K) bits for each code", "store fewer bits for codes that are frequent in the file"
    packing.add_argument("--pack", dest="packing", action="store_const", const="bits", help=bits)
    packing.add_argument("--entropy-code", dest="packing", action="store_const", const="entropy", help=entropy)


def _add_decode(commands: argparse._SubParsersAction) -> None:
    summary, description = "turn files of codes into pictures and sounds", "Decode what `vpvae encode` wrote."
    where = {"run": "own_files:decode", "aliases": ["decode-audio"]}
    parser = _add_command(commands, "decode", summary, description, **where)
    given = "folder, or file: a PNG, WebP, JPEG, TIFF or BMP picture, or a WAV, FLAC or OGG sound"
    _add_own_files(parser, "file of codes, folder of them, or pattern", given, "the one that the codes name")


def _add_reconstruct(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "reconstruct",
        "compare pictures and sounds with their reconstructions",
        "Encode and decode pictures and sounds. For each picture, write one that shows it, its reconstruction and a "
        "map of its codes. For each sound, write both spectrograms and the decoded sound. Print quality and bits.",
        run="own_files:reconstruct",
    )
    _add_own_files(parser, _SIGNALS, "file or folder for pictures")
    _add_code_options(parser)


def _add_own_files(
    parser: argparse.ArgumentParser, files: str, output: str, tokenizer: str = "the one that comes with the package"
) -> None:
    """Options of the commands that take a user's own files."""
    parser.add_argument("files", nargs="+", metavar="FILE", help=files)
    parser.add_argument("--output", type=Path, help=f"{output}; default: next to each file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--tokenizer", type=os.path.expanduser, help=f"{_TOKENIZER}; default: {tokenizer}")
    parser.add_argument("--revision", help=_REVISION)
    parser.add_argument("--device", help=_DEVICE)


def _add_generate(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "generate",
        "make images or audio with a saved pipeline",
        "Generate images or clips with a pipeline that a generation recipe trained, and write each to a file (PNG, "
        "FLAC), and all of them to one more file. The same seed and options give the same images or clips.",
    )
    parser.add_argument("pipeline", type=os.path.expanduser, help="folder or hub id of a pipeline")
    parser.add_argument("--revision", help="branch, tag or commit of the pipeline")
    number = "number of images or clips to make; with classes or texts, the number for each of these"
    parser.add_argument("--num", type=_positive, default=4, help=number)
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the random numbers")
    what = parser.add_mutually_exclusive_group()
    several = {"nargs": "+", "action": "extend", "default": []}
    what.add_argument("--class", dest="classes", metavar="CLASS", help="names or ids of classes", **several)
    what.add_argument("--text", dest="texts", metavar="TEXT", help="texts that say what to make", **several)
    guidance = "scale of classifier-free guidance: above 1, the class or text counts more; 1 for no guidance"
    parser.add_argument("--guidance", type=_number, default=1.0, metavar="SCALE", help=guidance)
    warmth = "below 1, likely codes are drawn more often; at 0, only the likeliest code is; default: 1"
    parser.add_argument("--temperature", type=_number, help=warmth)
    parser.add_argument("--top-k", type=_positive, metavar="K", help="draw only from the K likeliest codes")
    nucleus = "draw only from the likeliest codes that together have probability P"
    parser.add_argument("--top-p", type=_number, metavar="P", help=nucleus)
    parser.add_argument("--output", type=Path, default=Path("generated"), help="folder for the files")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that has files")
    parser.add_argument("--device", help=_DEVICE)


def _add_push(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "push",
        "push a saved tokenizer to the Hub, with a model card",
        "Push the files of a saved tokenizer to the Hub in one commit. A model card is made from them unless the "
        "folder has a card written by hand. Hidden files and sub-folders are not pushed.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder that save_pretrained wrote")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made if it does not exist; default: main")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument("--allow-unfitted", action="store_true", help="push a tokenizer whose codebook is not fitted")


def _add_push_space(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "push-space",
        "push the page of vpvae app to the Hub, as a Space",
        "Push a Space that serves the page of some tokenizers. It holds the page, this package's source, and the "
        "tokenizers that are given as folders. An existing Space of that name is replaced.",
        run="push_space:run",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME of the Space; made if it does not exist")
    _add_page_tokenizers(parser)
    parser.add_argument("--private", action="store_true", help="make a new Space private")


def _add_page_tokenizers(parser: argparse.ArgumentParser) -> None:
    """The option that says which tokenizers a page shows."""
    name = f"{_TOKENIZER}; if several are given, each gets a tab"
    how = {"type": os.path.expanduser, "nargs": "+", "metavar": "TOKENIZER"}
    parser.add_argument("--tokenizer", dest="tokenizers", default=["image", "speech"], help=name, **how)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = _add_command(
        commands,
        "compare",
        "train several methods in the same way and compare them",
        "Train every method that a file names, for every codebook size and seed, from a shared start if the file has "
        "one. Measure them in and out of domain, with their own codes, refitted codebooks and refined codes. Write "
        "tables with paired differences, curves, results.json, and the values of single items. Finished work is not "
        "repeated: you may interrupt the command, start several copies of it to use several cores or GPUs, and start "
        "it again after you added columns to the file.",
    )
    parser.add_argument("--config", type=Path, required=True, help="e.g. benchmarks/compare/image_small.yaml")
    parser.add_argument("--output", type=Path, help="folder for runs and results; default: the file's output_dir")
    parser.add_argument("--dataset", help="data set to train and validate on; default: the file's")
    parser.add_argument("--out-of-domain", help="additional data set to measure on; default: the file's")
    parser.add_argument("--out-of-domain-split", default="test", help="split of the additional data set")
    parser.add_argument("--methods", nargs="+", help="methods to run; default: all")
    parser.add_argument("--codebook-sizes", nargs="+", type=int, help="codebook sizes to run; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to run; default: all")
    settings = "training settings for all runs, named as in a recipe, e.g. max_train_steps=500"
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    parser.add_argument("--report-only", action="store_true", help="train and measure nothing; report finished runs")


def _add_command(
    commands: argparse._SubParsersAction,
    name: str,
    summary: str,
    description: str,
    run: str | None = None,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    how = {"description": description, "formatter_class": _Help, "aliases": aliases}
    parser = commands.add_parser(name, help=summary, **how)
    # Suppressed, since a default would overwrite a --quiet that stands before the command.
    parser.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help=_QUIET)
    parser.set_defaults(run=run or f"{name}:run")
    return parser


def _add_code_options(parser: argparse.ArgumentParser) -> None:
    size = "use the codebook of K codes, if the tokenizer has several; default: the one last selected"
    parser.add_argument("--codebook-size", type=int, metavar="K", help=size)
    refine = "refine codes in at most STEPS steps, so that the reconstruction comes closer to the original; slow"
    parser.add_argument("--refine", type=_count, default=0, dest="refine_steps", metavar="STEPS", help=refine)


def _add_share_option(parser: argparse.ArgumentParser, default: str = "0.05") -> None:
    share = f"share of the files that is the split validation, if a local folder has no splits; default: {default}"
    parser.add_argument("--validation-share", type=float, help=share)


def _add_data_options(parser: argparse.ArgumentParser, split: str | None, split_help: str = "split to read") -> None:
    """Options that name a data set of images or audio."""
    data_set = "hub id of a data set of images or audio, or a local path: a folder or a file of them"
    parser.add_argument("--dataset", type=os.path.expanduser, required=True, help=data_set)
    parser.add_argument("--dataset-config", help="configuration (subset) of the data set")
    parser.add_argument("--dataset-revision", help="branch, tag or commit of the data set")
    parser.add_argument("--split", default=split, help=split_help)
    parser.add_argument("--column", help="column that holds the images or the audio; default: the only one")
    at_once = "images or clips per batch; clips are measured one by one"
    parser.add_argument("--batch-size", type=int, default=16, help=at_once)
    images = parser.add_argument_group("for images")
    images.add_argument("--size", type=int, help="side of a crop in pixels; default: the tokenizer's sample_size")
    images.add_argument("--shortest-side", type=int, help="scale an image's shortest side to this; default: --size")
    _add_audio_options(parser.add_argument_group("for audio"))


def _add_execution_options(parser: argparse.ArgumentParser, limit_help: str) -> None:
    """Options that say how the tokenizer is run, and on how many items."""
    parser.add_argument("--limit", type=_positive, help=limit_help)
    precision = "precision of encoder and decoder; the quantizer computes in float32"
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=precision)
    parser.add_argument("--compile", action="store_true", help="compile encoder and decoder with torch.compile")
    parser.add_argument("--device", help=_DEVICE)


def _add_audio_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--resample", action="store_true", help="convert files of another sampling rate")
    parser.add_argument("--downmix", action="store_true", help="average the channels of files that have several")


def _positive(text: str) -> int:
    return _count(text, least=1)


def _seed(text: str) -> int:
    if not (text.strip().isdecimal() and int(text) < 1 << 64):  # torch's generators take 64 bits at most
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {(1 << 64) - 1}, got {text}")
    return int(text)


def _number(text: str) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number, got {text}")


def _count(text: str, least: int = 0) -> int:
    if not (text.strip().isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text}")
    return int(text)
