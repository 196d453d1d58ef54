"""`vpvae info`: what a saved tokenizer is, from its folder alone."""

import argparse
import math

from vpvae_hf.bundled import bundled_or_given
from vpvae_hf.hub import read_saved
from vpvae_hf.hub.saved import strip_local_paths
from vpvae_hf.metric_labels import metric_label, sort_metrics


def run(options: argparse.Namespace) -> None:
    """Print what the folder's files say."""
    saved = read_saved(bundled_or_given(options.folder))
    quantizer, results = saved.quantizer, strip_local_paths(saved.results)
    factor = saved.entry.downsampling(saved.config)
    rows = {"What": f"{saved.class_name}, a tokenizer of {saved.entry.items}"}
    if saved.parameters is not None:
        kinds = ", ".join(sorted({kind for kind in saved.variants.values() if kind}))
        rows["Weights"] = f"{saved.parameters / 1e6:.1f} million, {kinds}"
    if "sampling_rate" in saved.config:
        rate = saved.config["sampling_rate"]
        rows["Codes"] = f"one per {factor} samples at {rate} Hz, {rate / factor:.2f} per second"
    else:
        rows["Codes"] = f"one per {factor} x {factor} pixels"
    if quantizer.code_groups > 1:
        rows["Codes"] += f", each of {quantizer.code_groups} parts"
    rows["Quantizer"] = f"{quantizer.kind}, {quantizer.latent_dim} dimensions"
    if quantizer.codebook_size is not None:
        others = getattr(quantizer, "other_codebook_sizes", ())
        also = f"; others: {', '.join(map(str, others))}" if others else ""
        also += ", nested" if getattr(quantizer, "nested", False) else ""
        bits = quantizer.code_groups * math.log2(quantizer.codebook_size)
        rows["Codebook"] = f"{quantizer.codebook_size} codes, {bits:.4g} bits{also}"
    if not quantizer.fitted:
        rows["Codebook"] = "not fitted yet: vpvae fit"
    training = results.get("training") or {}
    trained = [f"{training[key]:,} {words}" for key, words in _TRAINED.items() if training.get(key) is not None]
    rows["Trained"] = ", ".join([*trained, f"on {training['dataset']}"]) if training.get("dataset") else "not recorded"
    print("\n".join(f"{name:<10} {value}" for name, value in rows.items()))
    for evaluation in results.get("evaluation") or []:
        how = [evaluation["split"]]
        how += [f"K = {evaluation['codebook_size']}"] if "codebook_size" in evaluation else []
        how += [f"refined in {evaluation['refine_steps']} steps"] if evaluation.get("refine_steps") else []
        how += [f"the first {evaluation['limit']}"] if evaluation.get("limit") else []
        metrics = evaluation["metrics"]
        shown = [name for name in sort_metrics(metrics) if name in _SHOWN and metrics[name] is not None]
        measured = ", ".join(f"{metric_label(name).label} {metric_label(name).format(metrics[name])}" for name in shown)
        print(f"{evaluation['dataset']}, {', '.join(how)}: {measured}")


_TRAINED = {"steps": "steps", "images_seen": "images", "segments_seen": "segments"}
_SHOWN = ("psnr", "ssim", "lpips", "pesq", "stoi", "mel_distance", "code_usage")
