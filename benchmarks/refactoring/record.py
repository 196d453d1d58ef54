"""Record the results of tiny real runs, bit for bit: `record.py --root CHECKOUT --data FOLDER --output before.json`.

For every kind of quantizer, images and speech, it records all rows of metrics of a run that is killed and resumed,
weights, codes, evaluations, files of codes and generated ids; also K-means, search and streams. A refactoring has
changed nothing if `compare.py` finds no difference between the records before and after it. Takes about 4 minutes on
two CPU cores.

FOLDER holds `images` and `speech`, each with the folders `train` and `validation`: about 34 and 8 images, 10 and 3
FLAC files of 16 kHz. Run it with the Python of the checkout's virtual environment; the package is imported from
CHECKOUT/src. Everything that names something of the package stands in the ADAPTER below. A refactoring changes it in a
copy of this file; the keys of the record stay the same.
"""

import argparse
import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

IMAGES = SPEECH = ""  # folders; set by main
SEED, STEPS, STOP = 7, 20, 10

# ============================================= ADAPTER: product's names =============================================
PACKAGE = "vpvae_hf"
CLI = "vpvae_hf.__main__"  # the module that the command `vpvae` runs
PRELOAD = [
    "vpvae_hf.cli.main",
    "vpvae_hf.cli.tokenize",
    "vpvae_hf.cli.evaluate",
    "vpvae_hf.cli.fit",
    "vpvae_hf.cli.own_files",
    "vpvae_hf.training.run",
    "vpvae_hf.models.autoencoder_vp",
    "vpvae_hf.models.modeling_vp_codec",
    "vpvae_hf.generation",
]
RECIPE = {
    "images": "recipes/image/train.py",
    "speech": "recipes/audio/train.py",
    "autoregressive": "recipes/generation/train_ar.py",
    "masked": "recipes/generation/train_masked.py",
    "diffusion": "recipes/generation/train_diffusion.py",
}
RECIPE_FILE = {
    "autoregressive": "recipes/generation/ar_small.yaml",
    "masked": "recipes/generation/masked_small.yaml",
    "diffusion": "recipes/generation/diffusion_small.yaml",
}
METRICS, CHECKPOINT, RESULTS = "metrics.jsonl", "checkpoint-{}", "results.json"
TOKENIZER, PIPELINE, UNET = "tokenizer", "pipeline", "pipeline/unet"
TRANSFORMERS = ("transformer",)  # folders within a pipeline; it has one of them
GENERATOR_LOG = "checkpoint-10/trainer_state.json"
GOES_ON = "going on from"  # a resumed run prints this
TRAINED_WEIGHTS = "model.safetensors"  # within a checkpoint
MANIFEST, CODES_GLOB = "tokenizer.json", "data/*.parquet"  # what `vpvae tokenize` writes
TIMES = ("examples_per_second",)  # metrics that differ from run to run
SMALL_VP = {"kind": "vp", "codebook_size": 32, "latent_dim": 4, "queue_share": 0.1}
KINDS = {  # our name -> the product's settings
    "vp_metropolis": {**SMALL_VP, "perturbation": "metropolis"},
    "vp_random_codebook": {**SMALL_VP, "perturbation": "random_codebook"},
    "vp_always_accept": {**SMALL_VP, "perturbation": "always_accept"},
    "fsp": {"kind": "fsp", "levels": [4, 3, 3]},
    "vq": {"kind": "vq", "codebook_size": 32, "latent_dim": 4},
    "vq_ema": {
        **{"kind": "vq", "codebook_size": 32, "latent_dim": 4, "rotation_trick": True},
        **{"update": "ema", "kmeans_start": True, "replace_below": 1.0},
    },
    "simvq": {"kind": "simvq", "codebook_size": 32, "latent_dim": 4},
    "fsq": {"kind": "fsq", "levels": [4, 3, 3]},
    "fsq_original": {"kind": "fsq", "levels": [4, 3, 3], "symmetric": False, "noise_probability": 0},
    "token_bridge": {"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3},
    "none": {"kind": "none", "latent_dim": 4},
}
IMAGE_ARCHITECTURE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
AUDIO_ARCHITECTURE = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "sliding_window": 8,
    "layer_scale_initial_scale": 0.1,
    "chunk_length_s": 1.0,
}
# Additional settings of single runs, whose states are part of a checkpoint too.
CHANGES = {
    ("images", "vp_metropolis"): {"use_ema": True, "ema_decay": 0.5},
    ("images", "vq"): {"adversarial": {"weight": 0.1, "start_step": 2, "channels": 8, "layers": 1}},
    ("images", "simvq"): {"gradient_accumulation_steps": 2},
    ("speech", "fsp"): {"use_ema": True, "ema_decay": 0.5},
}


def tokenizer_settings(modality, kind, output, causal=False):
    """Settings of a training run of 20 steps that logs each step."""
    data = {"workers": 0, "shuffle_buffer": 8}
    if modality == "images":
        data |= {"name": IMAGES, "size": 32, "shortest_side": 64, "crop": "random", "flip": True}
        data |= {"validation_examples": 4}
        own = {"model": {"architecture": IMAGE_ARCHITECTURE}, "losses": {"l1": 1.0, "l2": 2.0}}
    else:
        data |= {"name": SPEECH, "segment_s": 0.3, "validation_examples": 1}
        own = {"model": {"architecture": AUDIO_ARCHITECTURE | {"causal": causal}}, "losses": {"l1": 10.0, "stft": 1.0}}
    return (
        {"quantizer": KINDS[kind], "data": data, "max_train_steps": STEPS, "lr_warmup_steps": 2}
        | own
        | {
            **run_settings(output, checkpoints=STOP, validation=STOP),
            "validation_pictures": 2,
            **CHANGES.get((modality, kind), {}),
        }
    )


def run_settings(output, *, checkpoints, validation):
    return {
        "output_dir": str(output),
        "train_batch_size": 4,
        "learning_rate": 2e-3,
        "seed": SEED,
        "logging_steps": 1,
        "validation_steps": validation,
        "checkpointing_steps": checkpoints,
        "report_to": [],
    }


def generator_settings(modality, codes, output):
    data = {"tokens": str(codes / "train"), "validation_tokens": str(codes / "validation")}
    data |= {} if modality == "images" else {"window": 24}
    own = {"data": data, "max_train_steps": 10, "lr_warmup_steps": 2, "samples": 2}
    return own | run_settings(output, checkpoints=5, validation=5)


def diffusion_settings(tokenizer, output):
    data = {"name": IMAGES, "size": 32, "shortest_side": 32, "workers": 0, "validation_examples": 4}
    own = {"tokenizer": str(tokenizer), "data": data, "max_train_steps": 6, "samples": 1, "num_inference_steps": 2}
    return own | run_settings(output, checkpoints=3, validation=3)


def decoder_settings(modality, tokenizer, output):
    """Settings to fine-tune a decoder alone."""
    settings = tokenizer_settings(modality, "vp_metropolis", output)
    for name in ("quantizer", "use_ema", "ema_decay"):
        settings.pop(name, None)
    return settings | {"model": {"pretrained": str(tokenizer)}, "train_only": "decoder", "max_train_steps": 6}


RESUME = ["--resume_from_checkpoint", "latest"]
CONFIG = "--config"


def tokenize_arguments(modality, tokenizer, split, output):
    data = IMAGES if modality == "images" else SPEECH
    return ["tokenize", str(tokenizer), "--dataset", data, "--split", split, "--output", str(output)]


def evaluate_arguments(modality, tokenizer):
    data = IMAGES if modality == "images" else SPEECH
    return ["evaluate", str(tokenizer), "--dataset", data, "--split", "validation", "--save"]


def fit_arguments(modality, tokenizer, output):
    data = IMAGES if modality == "images" else SPEECH
    return ["fit", str(tokenizer), "--dataset", data, "--codebook-size", "24", "--output", str(output), "--seed", "3"]


def encode_arguments(file, tokenizer, codes):
    return ["encode-audio", str(file), "--tokenizer", str(tokenizer), "--output", str(codes)]


def decode_arguments(codes, audio):
    return ["decode-audio", str(codes), "--output", str(audio)]


def product():
    """Everything that is imported from the package, under names of this file."""
    from vpvae_hf import (
        AutoencoderVP,
        StreamingDecoder,
        StreamingEncoder,
        VPAutoregressivePipeline,
        VPCodecConfig,
        VPCodecModel,
        VPMaskedPipeline,
        fit_codebook,
    )
    from vpvae_hf.codebook import fit_kmeans
    from vpvae_hf.neighbors import build_index, nearest_point

    return SimpleNamespace(
        model={"images": AutoencoderVP, "speech": VPCodecModel},
        new_model={
            "images": lambda kind: AutoencoderVP(**IMAGE_ARCHITECTURE, sample_size=32, quantizer=KINDS[kind]),
            "speech": lambda kind: VPCodecModel(VPCodecConfig(**AUDIO_ARCHITECTURE, quantizer=KINDS[kind])),
        },
        pipeline={
            ("images", "autoregressive"): VPAutoregressivePipeline,
            ("speech", "autoregressive"): VPAutoregressivePipeline,
            ("images", "masked"): VPMaskedPipeline,
            ("speech", "masked"): VPMaskedPipeline,
        },
        stream_encoder=StreamingEncoder,
        stream_decoder=StreamingDecoder,
        fit_codebook=fit_codebook,
        fit_kmeans=fit_kmeans,
        build_index=build_index,
        nearest_point=nearest_point,
        search_backends=("torch", "kdtree", "faiss"),  # those that run on a CPU
    )


def codes_of(model, modality, inputs):
    return model.tokenize(inputs) if modality == "images" else model.encode(**inputs).audio_codes


def signal_of(model, modality, codes):
    return model.detokenize(codes) if modality == "images" else model.decode(codes).audio_values


def latents_of(model, modality, inputs):
    """[N, d] continuous latents."""
    name = "pixel_values" if modality == "images" else "input_values"
    return model.latent_vectors(inputs if modality == "images" else inputs[name]).flatten(0, -2)


def training_step(model, inputs):
    """Scalars of a forward and backward pass, and the latents."""
    output = model.train()(inputs)
    loss = (output.sample - inputs).abs().mean() + output.loss
    loss.backward()
    return {"loss": loss, "quantizer": output.loss, **output.metrics}, output.latents


def codebook_of(model):
    """[K, d] vectors of all codes."""
    import torch

    return model.quantize.decode(torch.arange(model.quantize.codebook_size))


def generate(pipeline, modality, method, generator):
    count = {"num_images": 3}
    how = {"top_k": 20, "top_p": 0.95} if method == "autoregressive" else {"num_inference_steps": 5}
    made = pipeline(**count, **how, generator=generator, output_type="codes").codes
    return made if modality == "images" else list(made)


def results_of(folder):
    """The measurements in a tokenizer's or a pipeline's results, without names, paths, settings and versions."""
    results = json.loads((folder / RESULTS).read_text())
    if isinstance(results["evaluation"], list):
        left = ("dataset", "split")
        evaluation = [{k: v for k, v in entry.items() if k not in left} for entry in results["evaluation"]]
        seen = {k: v for k, v in results["training"].items() if k == "steps" or k.endswith("_seen")}
        return {"evaluation": evaluation, "codebook": results["codebook"], "training": seen}
    return {"evaluation": results["evaluation"], "parameters": results["parameters"], "steps": results.get("steps")}


# ================================================= end of the ADAPTER =================================================

TOKENIZED = {("images", "vp_metropolis"), ("images", "fsp"), ("speech", "vp_metropolis"), ("speech", "fsp")}
UNINTERRUPTED = TOKENIZED
FEW_GENERATORS = {("images", "token_bridge"): ["autoregressive"]}
ROOT, WORK = None, None  # set by main
LIBRARIES = (
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "vector-quantize-pytorch",
)


def sha(tensor):
    import torch

    tensor = torch.as_tensor(tensor).detach().cpu().contiguous()
    content = tensor.view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)
    return hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode() + content.numpy().tobytes()).hexdigest()


def described(codes):
    """Hash, shape and first values of a tensor of integers."""
    return {"sha256": sha(codes), "shape": list(codes.shape), "first": codes.flatten()[:32].tolist()}


def weights(folder):
    """Hashes of the tensors of all safetensors files of a folder: with their names, and without."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    assert files, f"no weights in {folder}"
    tensors = {name: sha(tensor) for file in files for name, tensor in load_file(file).items()}
    named = hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()
    unnamed = hashlib.sha256(json.dumps(sorted(tensors.values())).encode()).hexdigest()
    return {"sha256": named, "sha256_without_names": unnamed, "tensors": dict(sorted(tensors.items()))}


def forked(function, *arguments, log, until=None):
    """What a function returns (JSON), run in a process forked after all imports, which is killed once `until()`."""
    answer = log.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1), os.dup2(stream, 2)
            answer.write_text(json.dumps(function(*arguments)))
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    while until is not None and os.waitpid(pid, os.WNOHANG)[0] == 0:
        if until():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.003)
    if until is not None:
        assert until(), f"ended too early, see {log}"
        return None
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"failed with {status}, see {log}:\n{log.read_text()[-3000:]}"
    return json.loads(answer.read_text()) if answer.exists() else None


def script(path, arguments):
    sys.argv = [str(ROOT / path), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def command(arguments):
    sys.argv = [CLI, *arguments]
    runpy.run_module(CLI, run_name="__main__", alter_sys=True)


def config_file(file, settings, base=None):
    file.write_text(json.dumps(settings, indent=1))  # JSON is YAML
    return [*([CONFIG, str(ROOT / base)] if base else []), CONFIG, str(file)]


def log_rows(output):
    rows = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def whole(modality, kind, place):
    """An uninterrupted run, as a user starts it."""
    output = place / "whole"
    arguments = config_file(place / "whole.yaml", tokenizer_settings(modality, kind, output))
    with (place / "whole.log").open("w") as log:
        line = [sys.executable, str(ROOT / RECIPE[modality]), *arguments]
        status = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    assert status == 0, (place / "whole.log").read_text()[-3000:]
    return trained(modality, kind, output, place)


def interrupted(modality, kind, place, causal=False):
    """A run that is killed once its checkpoint at step 10 is written, and resumed from there."""
    output = place / "run"
    arguments = config_file(place / "run.yaml", tokenizer_settings(modality, kind, output, causal))
    at_stop, later = output / CHECKPOINT.format(STOP), (output / CHECKPOINT.format(STEPS), output / TOKENIZER)
    forked(script, RECIPE[modality], arguments, log=place / "killed.log", until=at_stop.exists)
    for folder in later:  # if the run was faster than the kill
        shutil.rmtree(folder, ignore_errors=True)
    forked(script, RECIPE[modality], [*arguments, *RESUME], log=place / "resumed.log")
    assert GOES_ON in (place / "resumed.log").read_text()
    return trained(modality, kind, output, place)


def trained(modality, kind, output, place):
    figures = {"log": log_rows(output), "weights": weights(output / TOKENIZER)}
    last = output / CHECKPOINT.format(STEPS)
    figures["trained_weights"] = weights(last)["sha256_without_names"] if (last / TRAINED_WEIGHTS).exists() else None
    figures["results"] = results_of(output / TOKENIZER)
    figures |= forked(used, modality, kind, output / TOKENIZER, log=place / f"{output.name}_used.log")
    return figures


def fixed_inputs(modality, tokenizer):
    """A few images, or one speech file, through the tokenizer's own processor."""
    import soundfile
    from PIL import Image
    from transformers import AutoFeatureExtractor, AutoImageProcessor

    if modality == "images":
        files = sorted(Path(IMAGES, "validation").iterdir())[:4]
        pictures = [Image.open(file).convert("RGB").resize((64, 48)) for file in files]
        return AutoImageProcessor.from_pretrained(tokenizer)(pictures, return_tensors="pt").pixel_values
    audio, rate = soundfile.read(sorted(Path(SPEECH, "validation").iterdir())[0], dtype="float32")
    return AutoFeatureExtractor.from_pretrained(tokenizer)(audio, sampling_rate=rate, return_tensors="pt")


def used(modality, kind, tokenizer):
    """What a saved tokenizer makes of fixed inputs; only latents if it has no codes."""
    import torch

    model, inputs = product().model[modality].from_pretrained(tokenizer).eval(), fixed_inputs(modality, tokenizer)
    with torch.no_grad():
        figures = {"latents": sha(latents_of(model, modality, inputs))}
        if kind != "none":
            codes = codes_of(model, modality, inputs)
            figures["codes"], figures["decoded"] = described(codes), sha(signal_of(model, modality, codes))
    return figures


def streamed(tokenizer):
    """Codes and audio from chunks of two lengths, and whether the codes equal those of the whole."""
    import torch

    names, figures = product(), {}
    model, inputs = names.model["speech"].from_pretrained(tokenizer).eval(), fixed_inputs("speech", tokenizer)
    audio, whole_codes = inputs["input_values"], codes_of(model, "speech", inputs)
    for chunk in (777, 4000):
        encoder, decoder = names.stream_encoder(model), names.stream_decoder(model)
        parts = [encoder.encode(part) for part in audio.split(chunk, dim=-1)] + [encoder.finish()]
        codes = torch.cat(parts, dim=-1)
        sound = torch.cat([decoder.decode(part) for part in codes.split(5, dim=-1)], dim=-1)
        figures[str(chunk)] = {
            "codes": described(codes),
            "audio": sha(sound),
            "as_whole": torch.equal(codes, whole_codes),
        }
    return figures


def code_files(folder):
    import pyarrow.parquet

    manifest = json.loads((folder / MANIFEST).read_text())
    rows = [row for file in sorted(folder.glob(CODES_GLOB)) for row in pyarrow.parquet.read_table(file).to_pylist()]
    codes = [row["codes"] for row in rows]
    hashed = hashlib.sha256(json.dumps(codes).encode()).hexdigest()
    return {"rows": len(codes), "codes": hashed, "fingerprint": manifest["fingerprint"]}


def generator(modality, method, place):
    output = place / method
    settings = generator_settings(modality, place / "codes", output)
    forked(
        script,
        RECIPE[method],
        config_file(place / f"{method}.yaml", settings, RECIPE_FILE[method]),
        log=place / f"{method}.log",
    )
    history = json.loads((output / GENERATOR_LOG).read_text())["log_history"]
    unknown = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    part = next(p for p in (output / PIPELINE).iterdir() if p.name in TRANSFORMERS)
    return {
        "log": [{k: v for k, v in row.items() if k not in unknown} for row in history],
        "weights": weights(part),
        "results": results_of(output / PIPELINE),
        "generated": forked(generated, modality, method, output / PIPELINE, log=place / f"{method}_generated.log"),
    }


def generated(modality, method, folder):
    import torch

    pipeline = product().pipeline[modality, method].from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return [described(codes) for codes in generate(pipeline, modality, method, torch.Generator().manual_seed(SEED))]


def diffusion(tokenizer, place):
    output = place / "diffusion"
    arguments = config_file(place / "diffusion.yaml", diffusion_settings(tokenizer, output), RECIPE_FILE["diffusion"])
    forked(script, RECIPE["diffusion"], arguments, log=place / "diffusion.log")
    return {"log": log_rows(output), "weights": weights(output / UNET)}


def decoder_alone(modality, tokenizer, place):
    output = place / "decoder"
    arguments = config_file(place / "decoder.yaml", decoder_settings(modality, tokenizer, output))
    forked(script, RECIPE[modality], arguments, log=place / "decoder.log")
    return {"log": log_rows(output), "weights": weights(output / TOKENIZER), "results": results_of(output / TOKENIZER)}


def commands(modality, kind, tokenizer, place):
    """Results of the command line on a saved tokenizer."""
    figures, copy = {}, place / "evaluated"
    shutil.copytree(tokenizer, copy)
    forked(command, evaluate_arguments(modality, copy), log=place / "evaluate.log")
    figures["evaluate"] = results_of(copy)["evaluation"]
    if kind.startswith("vp"):
        forked(command, fit_arguments(modality, tokenizer, place / "fitted"), log=place / "fit.log")
        figures["fit"] = {"weights": weights(place / "fitted"), "codebook": results_of(place / "fitted")["codebook"]}
    if modality == "speech":
        from safetensors.torch import load_file

        file, codes, audio = sorted(Path(SPEECH, "validation").iterdir())[1], place / "c.safetensors", place / "c.wav"
        forked(command, encode_arguments(file, tokenizer, codes), log=place / "encode.log")
        forked(command, decode_arguments(codes, audio), log=place / "decode.log")
        figures["encode"] = {name: described(tensor) for name, tensor in load_file(codes).items()}
        figures["decode"] = hashlib.sha256(audio.read_bytes()).hexdigest()
    return figures


def tokenizer_chain(modality, kind):
    place = WORK / modality / kind
    place.mkdir(parents=True)
    figures, which = {"resumed": interrupted(modality, kind, place)}, (modality, kind)
    tokenizer = place / "run" / TOKENIZER
    if which in UNINTERRUPTED:
        figures["uninterrupted"] = whole(modality, kind, place)
        figures["resumed_is_uninterrupted"] = figures["resumed"] == figures["uninterrupted"]
    if which in TOKENIZED:
        figures["commands"] = commands(modality, kind, tokenizer, place)
    methods = FEW_GENERATORS.get(which, ["autoregressive", "masked"] if which in TOKENIZED else [])
    for split in ("train", "validation") if methods else ():
        folder = place / "codes" / split
        forked(command, tokenize_arguments(modality, tokenizer, split, folder), log=place / f"tokenize_{split}.log")
        figures.setdefault("tokenized", {})[split] = code_files(folder)
    for method in methods:
        figures[method] = generator(modality, method, place)
    if kind == "vp_metropolis":
        figures["decoder_alone"] = decoder_alone(modality, tokenizer, place)
        if modality == "images":
            figures["diffusion"] = diffusion(tokenizer, place)
    return figures


def causal_chain(modality, kind):
    place = WORK / "speech" / f"causal_{kind}"
    place.mkdir(parents=True)
    figures = interrupted("speech", kind, place, causal=True)
    return {"resumed": figures, "streamed": forked(streamed, place / "run" / TOKENIZER, log=place / "streamed.log")}


def direct_chain(what, _):
    place = WORK / "direct"
    place.mkdir(parents=True, exist_ok=True)
    return forked(DIRECT[what], log=place / f"{what}.log")


def normal(*shape, seed=0):
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kmeans():
    fit_kmeans, figures = product().fit_kmeans, {}
    small, large = normal(4096, 4), normal(100_000, 4, seed=1) * normal(1, 4, seed=2).exp()
    cases = {
        "small": (small, 64, {}),
        "large": (large, 128, {"latents_per_code": 10**6}),
        "large_seed": (large, 128, {"seed": 9, "max_iterations": 5, "latents_per_code": 10**6}),
        "wide": (normal(6000, 16, seed=3), 40, {}),
    }
    for name, (latents, size, how) in cases.items():
        result = fit_kmeans(latents, size, **how)
        figures[name] = {"centroids": sha(result.centroids), "distortion": result.distortion, "n": result.iterations}
    return figures


def search():
    names, figures = product(), {}
    for dim in (4, 12):
        points, queries = normal(5000, dim, seed=1), normal(500, dim, seed=2)
        for backend in names.search_backends:
            distances = names.build_index(points, backend).distances(queries, ranks=(1, 8, 64))
            figures[f"{backend}_{dim}"] = {"sha256": sha(distances), "first": distances[:2].tolist()}
        distance, codes = names.nearest_point(queries, points)
        figures[f"nearest_{dim}"] = {"distances": sha(distance), "codes": described(codes)}
    return figures


def fit():
    """Initial weights, a forward pass, and `fit_codebook`, in a loop of one's own."""
    import torch

    names, figures = product(), {}
    for modality, shape in (("images", (8, 3, 32, 32)), ("speech", (4, 1, 4800))):
        for kind in KINDS:
            torch.manual_seed(SEED)
            model = names.new_model[modality](kind)
            tensors = sorted(sha(tensor) for tensor in model.state_dict().values())
            mine = figures.setdefault(modality, {})[kind] = {
                "start": hashlib.sha256("".join(tensors).encode()).hexdigest()
            }
            batches = [normal(*shape, seed=number).clamp(-3, 3) / 3 for number in range(8)]
            for number in range(3):  # the queue is full enough for the last one
                scalars, latents = training_step(model, batches[number])
            mine["step"] = {name: float(value.detach()) for name, value in scalars.items()}
            mine["latents"] = sha(latents)
            mine["gradients"] = sha(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
            if not kind.startswith("vp"):
                continue
            result = names.fit_codebook(model, batches, codebook_size=20, latents_per_code=40, seed=2, progress=False)
            mine["codebook"], mine["fit"] = sha(codebook_of(model.eval())), dict(vars(result))
    return figures


DIRECT = {"fit_kmeans": kmeans, "build_index": search, "fit_codebook": fit}


def main():
    global ROOT, WORK, IMAGES, SPEECH
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="checkout whose src/ is imported")
    parser.add_argument("--data", type=Path, required=True, help="folder with images and speech")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--work", type=Path, help="folder for the runs, deleted first; default: OUTPUT.work")
    parser.add_argument("--only", help="part of a name, such as images/vp or direct/fit_kmeans")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    ROOT, started = options.root.resolve(), time.monotonic()
    IMAGES, SPEECH = (str(options.data.resolve() / name) for name in ("images", "speech"))
    WORK = (options.work or options.output.with_suffix(".work")).resolve()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(WORK / "hf")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(environment | {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"})
    sys.path.insert(0, str(ROOT / "src"))
    for name in [PACKAGE, *PRELOAD]:
        __import__(name)
    place = Path(sys.modules[PACKAGE].__file__)
    assert place.is_relative_to(ROOT), f"{PACKAGE} is imported from {place}, not from {ROOT}"
    chains = [(tokenizer_chain, *which) for which in sorted(TOKENIZED, reverse=True)]
    chains += [(tokenizer_chain, m, k) for m in ("speech", "images") for k in KINDS if (m, k) not in TOKENIZED]
    chains += [(causal_chain, "causal", kind) for kind in ("vp_metropolis", "fsp")]
    chains += [(direct_chain, what, "direct") for what in DIRECT]
    named = {f"{what}/{k}" if f is not direct_chain else f"direct/{what}": (f, what, k) for f, what, k in chains}
    named = {name: chain for name, chain in named.items() if not options.only or options.only in name}
    import torch

    # Values of another machine may differ in their last bits.
    machine = {"cpu": torch.backends.cpu.get_cpu_capability(), "python": sys.version.split()[0]}
    figures = {"versions": {name: version(name) for name in LIBRARIES} | machine}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("fork")) as pool:
        running = {name: pool.submit(timed, *chain) for name, chain in named.items()}
        for name, future in running.items():
            figures[name], seconds = future.result()
            print(f"{name:<30}{seconds:6.1f} s", flush=True)
    options.output.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(f"{options.output}: {len(named)} chains in {time.monotonic() - started:.0f} s")


def timed(function, *arguments):
    started = time.monotonic()
    return function(*arguments), time.monotonic() - started


if __name__ == "__main__":
    main()
