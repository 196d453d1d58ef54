"""Count the work of a GPU without one: `run.py --root CHECKOUT --output before.json`.

For each kind of quantizer, in a tiny image and a tiny audio tokenizer, it counts synchronizations, launches, copies to
the device and collectives of a training step of the Trainer, from its loader to its log; the same for tokenizing,
encoding and decoding; and graph breaks. `device.py` says what counts as what; the JSON has the line of the package
that caused each synchronization. `table.py` makes a table of two such files. Needs g++ and triton, and about 4 minutes
on one core.

For several ranks, only one runs, in a fake process group under NCCL's name whose other ranks do nothing. Accelerate is
told that there is one process, so what DistributedDataParallel adds is counted separately, with ranks on the CPU.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {
    "vp, metropolis": {"kind": "vp", "perturbation": "metropolis"},
    "vp, always_accept": {"kind": "vp", "perturbation": "always_accept"},
    "vp, random_codebook": {"kind": "vp", "perturbation": "random_codebook"},
    "vp, random_codebook, range": {"kind": "vp", "perturbation": "random_codebook", "codebook_size_range": [32, 64]},
    "fsp": {"kind": "fsp", "levels": [5, 4, 3]},
    "fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "fsq, original": {"kind": "fsq", "levels": [5, 4, 3], "symmetric": False, "noise_probability": 0},
    "simvq": {"kind": "simvq", "codebook_size": 64, "latent_dim": 3},
    "vq, gradient": {"kind": "vq", "codebook_size": 64, "latent_dim": 3},
    "vq, ema": {"kind": "vq", "codebook_size": 64, "latent_dim": 3, "update": "ema"},
    "token_bridge": {"kind": "token_bridge", "codebook_size": 4, "latent_dim": 3},
    "none": {"kind": "none", "latent_dim": 3},
}
SMALL_VP = {"codebook_size": 64, "latent_dim": 3}
IMAGE_ARCHITECTURE = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
AUDIO_ARCHITECTURE = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "sliding_window": 8,
    "chunk_length_s": 1.0,
}
BATCH, SIDE, RATE = 4, 32, 16000
LOGGED, STEPS = 4, 9  # rows are logged at 4, 8 and 9; the steps in between are the ordinary ones
WORLDS = (1, 2, 8)
# Graphs of other kinds' methods differ in a few operations of the quantizer, and take a minute each.
_KINDS_OF_RANKS = ("vp, metropolis", "vp, random_codebook", "fsp", "vq, ema")
_KINDS_OF_METHODS = ("vp, metropolis", "fsp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help="checkout whose src is counted")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        sys.path.insert(0, str(arguments.root / "src"))
        found = _PARTS[arguments.part](arguments.kinds, *([arguments.world] if arguments.world else []))
        arguments.output.write_text(json.dumps(found))
        # Python's own exit would abort if autograd's thread still released the mode.
        os._exit(0)
    results = {}
    for part in arguments.parts:
        worlds = WORLDS if part == "training" else WORLDS[1:] if part == "ddp" else (None,)
        for world in worlds:
            results[part if world is None else f"{part}, {world} rank(s)"] = _in_process(arguments, part, world)
            arguments.output.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def _in_process(arguments: argparse.Namespace, part: str, world: int | None) -> dict:
    """Count a part in a process of its own, since torch either has the simulated device or has not."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "found.json")
        command = [sys.executable, __file__, "--root", str(arguments.root), "--output", str(output), "--part", part]
        command += ["--kinds", *arguments.kinds, *(["--world", str(world)] if world else [])]
        environment = os.environ | {"PYTHONPATH": str(arguments.root / "src"), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment)
        return json.loads(output.read_text())


def training(kinds: list[str], world: int) -> dict:
    """Ordinary and logged steps of a Trainer with the package's own loader, by modality and kind."""
    import device

    mode = device.enter()
    if world > 1:
        _join_fake_job(world)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        writers = {"image": write_images, "audio": write_audio} if world == 1 else {"image": write_images}
        for modality, write in writers.items():
            data = write(Path(folder, modality))
            for kind in kinds if world == 1 else [kind for kind in kinds if kind in _KINDS_OF_RANKS]:
                print(f"training, {world} rank(s): {modality}, {kind}", file=sys.stderr)
                found[f"{modality}: {kind}"] = _training_steps(device, modality, KINDS[kind], data)
    mode.__exit__(None, None, None)
    return found


def _training_steps(device, modality: str, quantizer: dict, data: str) -> dict:
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from vpvae_hf.modalities import Batches, modality_of
    from vpvae_hf.training.trainer import Trainer

    config = run_config(modality, quantizer, data)
    ours = modality_of(config)
    model = device.onto(ours.build_model(config))
    fill_queue(model.quantize, device.DEVICE)
    batches = Batches(ours, model, config.data, batch_size=BATCH).training(seed=0)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    # Every later AcceleratorState copies these from there.
    accelerator.state.device = PartialState._shared_state["device"] = device.DEVICE
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.NO
    watched = _Watched(batches, device.counter)
    losses = {"losses": ours.losses(config, model), "loss_weights": config.loss_weights}
    trainer = Trainer(model, watched, config, **losses, accelerator=accelerator)
    with device.counter.counted():
        trainer.run()
    steps = {step: device.summary(events) for step, events in enumerate(watched.steps, 1)}
    ordinary = [steps[step] for step in (5, 6, 7)]
    _free(accelerator)
    return {
        "ordinary": min(ordinary, key=lambda step: step["syncs"]),
        "most": max(step["syncs"] for step in ordinary),
        "logged": steps[8],
        "bytes_per_item": steps[6]["to_device"]["largest"] / BATCH,
    }


class _Watched:
    """A loader that separates the events of one step from those of the next."""

    def __init__(self, loader, counter):
        self._loader, self._counter, self.steps = loader, counter, []

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def __iter__(self):
        for batch in self._loader:
            yield batch
            self.steps.append(self._counter.take())


def methods(kinds: list[str]) -> dict:
    """Counts of the methods of fitted tokenizers, by modality, kind and method."""
    import device
    import torch

    mode, found = device.enter(), {}
    with torch.no_grad():
        for modality in ("image", "audio"):
            for kind in kinds:
                print(f"methods: {modality}, {kind}", file=sys.stderr)
                model = device.onto(fitted_model(modality, KINDS[kind]))
                calls = image_calls(model) if modality == "image" else audio_calls(model)
                for name, call in calls.items():
                    found[f"{modality}: {kind}: {name}"] = _counted_call(device, *call)
    mode.__exit__(None, None, None)
    return found


def _counted_call(device, method, *inputs) -> dict:
    there = [each.to(device.DEVICE) for each in inputs]
    method(*there)  # the first call may fill caches
    with device.counter.counted() as events:
        method(*there)
    return device.summary(events)


def image_calls(model) -> dict:
    """Method and inputs by name."""
    import torch

    images = 2 * torch.rand(BATCH, 3, SIDE, SIDE) - 1
    latents = torch.randn(BATCH, model.quantize.latent_dim, SIDE // 4, SIDE // 4)
    calls = {"encode": (model.encode, images), "forward": (model, images)}
    if not model.quantize.has_codes:
        return calls | {"decode latents": (model.decode, latents)}
    groups = () if model.quantize.code_groups == 1 else (model.quantize.code_groups,)
    codes = torch.zeros(BATCH, SIDE // 4, SIDE // 4, *groups, dtype=torch.long)
    calls |= {"tokenize": (model.tokenize, images), "detokenize": (model.detokenize, codes)}
    return calls | {"decode codes": (model.decode, codes), "decode latents": (model.decode, latents)}


def audio_calls(model) -> dict:
    import torch

    hop = model.config.hop_length
    frames, audio = 20, 0.1 * torch.randn(BATCH, 1, 20 * hop)
    lengths = torch.tensor([frames * hop, 15 * hop + 7, 3 * hop, hop])
    mask = (torch.arange(frames * hop) < lengths[:, None]).long()
    latents = torch.randn(BATCH, model.quantize.latent_dim, frames)
    calls = {"forward": (model, audio), "forward, padded": (model, audio, mask)}
    if not model.quantize.has_codes:
        calls["latent_vectors"] = (model.latent_vectors, audio)
        return calls | {"decode_vectors": (model.decode_vectors, latents.mT)}
    calls["decode latents"] = (model.decode, latents)
    codes = torch.zeros(BATCH, model.quantize.code_groups, frames, dtype=torch.long)
    for name, rest in (("", ()), (", padded", (mask,))):
        calls |= {f"tokenize{name}": (model.tokenize, audio, *rest), f"encode{name}": (model.encode, audio, *rest)}
        calls |= {f"decode codes{name}": (model.decode, codes, *rest)}
    return calls


def graphs(kinds: list[str]) -> dict:
    """Graph breaks with their reasons, on the CPU; on a GPU the search differs, so its breaks may differ too."""
    import torch

    found = {}
    for modality in ("image", "audio"):
        for kind in kinds:
            print(f"graphs: {modality}, {kind}", file=sys.stderr)
            model = fitted_model(modality, KINDS[kind])
            calls = image_calls(model) if modality == "image" else audio_calls(model)
            with torch.no_grad():
                for name, (method, *inputs) in calls.items() if kind in _KINDS_OF_METHODS else ():
                    found[f"{modality}: {kind}: {name}"] = _breaks(method, inputs)
            fill_queue(model.train().quantize, torch.device("cpu"))
            found[f"{modality}: {kind}: training forward"] = _breaks(model, calls["forward"][1:])
    return found


def _breaks(method, inputs) -> dict:
    import torch

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.compile(method, backend="eager")(*inputs)
    reasons = torch._dynamo.utils.counters["graph_break"]
    # Only the first line is the reason; the others explain it.
    lines = {str(reason).splitlines()[0]: count for reason, count in reasons.items()}
    return {"breaks": sum(reasons.values()), "graphs": _graph_count(), "reasons": lines}


def _graph_count() -> int:
    import torch

    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


def ddp(kinds: list[str], world: int) -> dict:
    """Collectives of a step under DistributedDataParallel as the package sets it up; the other ranks do nothing."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    _join_fake_job(world, "gloo")
    os.environ |= {"WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "true"}
    from vpvae_hf.modalities import modality_of
    from vpvae_hf.training.trainer import accelerator_for

    class Collectives(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = []

        def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
            if getattr(operation, "namespace", "") == "c10d":
                sizes = [each.nbytes for each in torch.utils._pytree.tree_leaves(arguments) if _is_tensor(each)]
                self.found.append((operation.name(), sizes[-1] if sizes else 0))
            return operation(*arguments, **(settings or {}))

    def _is_tensor(value) -> bool:
        return isinstance(value, torch.Tensor)

    found = {}
    for kind in [kind for kind in kinds if kind in _KINDS_OF_RANKS]:
        print(f"ddp, {world} rank(s): {kind}", file=sys.stderr)
        config = run_config("image", KINDS[kind], "none")
        model = modality_of(config).build_model(config)
        fill_queue(model.quantize, torch.device("cpu"))
        accelerator = accelerator_for(config)
        wrapped = accelerator.prepare(model)
        wrapped.register_comm_hook(None, _sum_bucket)  # torch's own needs a result, which the fake group lacks
        images = 2 * torch.rand(BATCH, 3, SIDE, SIDE) - 1
        for _ in range(3):  # buckets are rebuilt after the first step
            collectives = Collectives()
            with collectives:
                output = wrapped(images)
                accelerator.backward((output.sample - images).abs().mean() + output.loss)
        calls: dict[str, list[int]] = {}
        for name, size in collectives.found:
            calls.setdefault(name, []).append(size)
        found[f"image: {kind}"] = {name: {"calls": len(s), "bytes": sum(s)} for name, s in calls.items()}
        _free(accelerator)
    return found


def _sum_bucket(_, bucket):
    import torch

    torch.distributed.all_reduce(bucket.buffer())
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _join_fake_job(world: int, backend: str | None = None) -> None:
    """Under the name of a backend, by default that which the package asks Accelerate for: if for none, NCCL alone."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    both, source = "cpu:gloo,cuda:nccl", Path(importlib.util.find_spec("vpvae_hf").origin).parent
    if backend is None:
        backend = both if any(both in file.read_text() for file in source.rglob("*.py")) else "nccl"
    configs = {"nccl": "cuda:nccl", "gloo": "cpu:gloo,cuda:gloo"}
    dist.get_backend = lambda group=None: "undefined" if backend == both else backend
    dist.get_backend_config = lambda group=None: configs.get(backend, backend)


def _free(accelerator) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


def run_config(modality: str, quantizer: dict, data: str):
    from omegaconf import OmegaConf

    from vpvae_hf.modalities.audio import AudioTrainingConfig
    from vpvae_hf.modalities.image import ImageTrainingConfig

    images = modality == "image"
    settings = {
        "model": {"architecture": IMAGE_ARCHITECTURE if images else AUDIO_ARCHITECTURE},
        "quantizer": (SMALL_VP if quantizer["kind"] == "vp" else {}) | quantizer,
        "data": {"name": data, "workers": 0, "shuffle_buffer": 4, "validation_split": None},
        "losses": {"l1": 1.0, "l2": 1.0} if images else {"l1": 10.0, "stft": 1.0},
        "train_batch_size": BATCH,
        "max_train_steps": STEPS,
        "logging_steps": LOGGED,
        "report_to": [],
    }
    settings["data"] |= {"size": SIDE, "shortest_side": SIDE} if images else {"segment_s": 0.12}
    structured = OmegaConf.structured(ImageTrainingConfig if images else AudioTrainingConfig)
    return OmegaConf.to_object(OmegaConf.merge(structured, settings))


def fitted_model(modality: str, quantizer: dict):
    import torch

    from vpvae_hf.modalities import modality_of

    torch.manual_seed(0)
    config = run_config(modality, quantizer, "none")
    model = modality_of(config).build_model(config).eval()
    if model.quantize.needs_fitting:
        model.set_codebook(torch.randn(model.quantize.codebook_size, model.quantize.latent_dim))
    return model


def fill_queue(quantizer, place) -> None:
    """Make the state that of a long run, in either checkout: the queue full, the scale of the perturbation found."""
    import torch

    if quantizer.needs_fitting:
        size = quantizer.queue.capacity
        latents = torch.randn(size, quantizer.latent_dim, generator=torch.Generator().manual_seed(0))
        bounds = (0.01, 1.0) if quantizer.config.perturbation == "random_codebook" else (0.5, 2.0)
        state = quantizer.training_state.state_dict()
        known = {"value": 0.8, "error_ms": 0.05, "measured_at": size, "found_at": size, "bounds": bounds}
        state["scale"] |= {name: value for name, value in known.items() if name in state["scale"]}
        quantizer.training_state.load_state_dict(state | {"queue": {"latents": latents.to(place), "pushed": size}})


def write_images(folder: Path) -> str:
    """A data set of noise images, as a folder with the split "train"."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for number in range(8):
        image = Image.fromarray(random.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8))
        image.save(folder / f"train/{number}.png")
    return str(folder)


def write_audio(folder: Path) -> str:
    import numpy as np
    import soundfile

    random = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for number in range(8):
        soundfile.write(folder / f"train/{number}.flac", 0.1 * random.standard_normal(RATE // 2), RATE)
    return str(folder)


_PARTS = {"training": training, "methods": methods, "graphs": graphs, "ddp": ddp}


if __name__ == "__main__":
    main()
