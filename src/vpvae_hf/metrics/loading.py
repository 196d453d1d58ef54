"""Loading the metric modules for Hugging Face's evaluate library, which is imported only then."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "modules"


def load_metric(name: str, **settings):
    """A metric module for evaluate, loaded from the package's own files, so it needs no network.

    Args:
        name: "code_usage", "lpips", "mel_distance", "pesq", "psnr", "ssim" or "stoi".
        settings: `across_ranks` (see `RunningTotals` in evaluate_modules.py), or arguments of `evaluate.load`.

    Returns:
        An `evaluate.Metric`. Its `add_batch` takes tensors or arrays as its `inputs_description` says; its `compute`
        measures what was added.
    """
    files = {file.stem: file for file in _FOLDER.glob("*/*.py")}
    if name not in files:
        raise ValueError(f"no metric module {name!r}; there are {', '.join(sorted(files))}")
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(
            f"metric modules need the package evaluate ({error}): pip install 'vpvae_hf[eval]'"
        ) from error
    return evaluate.load(str(files[name].parent), **settings)
