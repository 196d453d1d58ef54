"""Stages about training steps, of images and of audio, and about encoding and decoding audio."""

import contextlib
import gzip
import itertools
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from measuring import Session
from torch import nn

_FSP = {"kind": "fsp", "codebook_size": 1024}
_TINY = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_TINY_AUDIO = {"encoder_hidden_size": 4, "decoder_hidden_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
_TINY_AUDIO |= {"num_attention_heads": 2, "intermediate_size": 64, "sliding_window": 8}
# Number of steps in the trace of kernels.
_TRACED_STEPS = 3


def quantizers(session: Session) -> dict[str, dict]:
    """Quantizers of the published sizes, and of larger ones, where the search costs most."""
    if session.quick:
        small = {"kind": "vp", "codebook_size": 64, "latent_dim": 3}
        return {"metropolis K=64": small | {"perturbation": "metropolis"}, "random_codebook K=64": small}
    found = {}
    for size, dim in ((1024, 4), (16384, 5), (65536, 5), (262144, 5), (1024, 16)):
        for perturbation in ("metropolis", "random_codebook"):
            settings = {"kind": "vp", "codebook_size": size, "latent_dim": dim, "perturbation": perturbation}
            found[f"{perturbation} K={size} d={dim}"] = settings
    for kind in ("fsq", "simvq", "vq", "none"):
        found[kind] = {"kind": kind} | ({"latent_dim": 4} if kind == "none" else {"codebook_size": 1024})
    return found


class Step:
    """A training step of a model, as the package's Trainer makes it, on batches that are on the device."""

    def __init__(self, session: Session, model: nn.Module, inputs: torch.Tensor, *, bf16: bool, **extras):
        self.session, self.model, self.inputs = session, model, inputs
        self.bf16 = bf16 and (session.on_cuda or session.quick)
        self.fused, self.loss, self.ema = extras.get("fused", session.on_cuda), extras.get("loss"), None
        model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=self.fused or None)
        if "foreach" in extras:
            from diffusers.training_utils import EMAModel

            self.ema = EMAModel(model.parameters(), decay=0.999, foreach=extras["foreach"])

    def __call__(self, turn: int) -> None:
        inputs = self.inputs[turn % len(self.inputs)]
        on = self.bf16
        with torch.autocast(self.session.device.type, torch.bfloat16, enabled=on):
            output = self.model(inputs)
            sample = getattr(output, "sample", None)
            loss = (sample - inputs).abs().mean() + output.loss
            if self.loss is not None:
                loss = loss + self.loss(sample, inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self.model.parameters())


def steps(session: Session) -> None:
    """Training steps of a VQGAN of factor 8, 67 million weights, on images of 256 pixels, most important first."""
    few, many = session.pick((8, 32), (2, 2))
    for batch in (few, many):
        _image_step(session, f"eager bf16 FSP B={batch}", batch)
    for name, settings in {"fsp": _FSP, **dict(itertools.islice(quantizers(session).items(), 2))}.items():
        session.figure(
            f"synchronizations of a Trainer's step, bf16 {name} B={few}",
            "",
            lambda settings=settings: _trainer_synchronizations(session, settings, few),
        )
    compiled = session.figure("compiled encoder and decoder", "", lambda: _described(_vqgan(session, compiled=True)))
    if compiled:
        model = _vqgan(session, compiled=True)
        _compile(session, model, few)
        _image_step(session, f"compiled bf16 FSP B={few}", few, model)
        for name, settings in quantizers(session).items():
            _with_quantizer(session, name, settings, few, model)
        model.set_quantizer(_FSP)
        _extras(session, few, model)
        _compile(session, model, many)
        _image_step(session, f"compiled bf16 FSP B={many}", many, model)
        for name, settings in itertools.islice(quantizers(session).items(), 4):
            _with_quantizer(session, name, settings, many, model)
        del model
    for compile_it, batch in session.pick(((False, few), (True, few), (True, many)), ((False, few),)):
        name = f"{'compiled' if compile_it else 'eager'} bf16 channels_last FSP B={batch}"
        _image_step(session, name, batch, _vqgan(session, compiled=compile_it, channels_last=True))
    for compile_it, batch in session.pick(((False, few), (False, many), (True, few)), ((False, few),)):
        name = f"{'compiled' if compile_it else 'eager'} fp32 (TF32) FSP B={batch}"
        _image_step(session, name, batch, _vqgan(session, compiled=compile_it), bf16=False)


def _vqgan(session: Session, compiled: bool = False, channels_last: bool = False) -> nn.Module | None:
    """None if it cannot be made here: figures that need it are then skipped, with the reason."""
    try:
        from vpvae_hf import AutoencoderVP
    except ImportError:
        return None
    torch.manual_seed(0)
    model = AutoencoderVP(**session.pick({}, _TINY), quantizer=_FSP).to(session.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if compiled:
        backend = "inductor" if session.on_cuda else "eager"
        model.encoder.compile(backend=backend)
        model.decoder.compile(backend=backend)
    return model


def _described(model: nn.Module | None) -> str:
    from vpvae_hf import AutoencoderVP  # says what is missing

    assert isinstance(model, AutoencoderVP)
    return f"{sum(weights.numel() for weights in model.parameters()) / 1e6:.1f} million weights"


def _images(session: Session, batch: int) -> torch.Tensor:
    """Four batches."""
    side = session.pick(256, 16)
    return (session.normal(4, batch, 3, side, side) / 3).clamp(-1, 1)


def _compile(session: Session, model: nn.Module, batch: int) -> None:
    def first_step() -> float:
        started = time.perf_counter()
        Step(session, model, _images(session, batch), bf16=True)(0)
        session.wait()
        return time.perf_counter() - started

    session.figure(f"compiling, first step of B={batch}", "s", first_step)


def _image_step(
    session: Session, name: str, batch: int, model: nn.Module | None = None, bf16: bool = True, **extras
) -> float | None:
    def make() -> Callable[[int], None]:
        from vpvae_hf import AutoencoderVP

        made = _vqgan(session) if model is None else model
        assert isinstance(made, AutoencoderVP)
        return Step(session, made, _images(session, batch), bf16=bf16, **extras)

    return session.time(f"step, {name}", make, seconds=1.5)


def _with_quantizer(session: Session, name: str, settings: dict, batch: int, model: nn.Module) -> None:
    def make() -> Callable[[int], None]:
        model.set_quantizer(settings)
        fill_queue(session, model.quantize)
        return Step(session, model, _images(session, batch), bf16=True)

    session.time(f"step, compiled bf16 {name} B={batch}", make, seconds=1.5)
    if name.startswith("metropolis K=1024 d=4"):
        trace = session.out / "metropolis.trace.json.gz"
        session.figure("trace of steps", "", lambda: _trace(session, model, batch, trace))


def fill_queue(session: Session, quantizer: nn.Module) -> None:
    """Make the state that of a long run: the queue full, and the scale of the perturbation found."""
    if quantizer.needs_fitting:
        size, dim = quantizer.queue.capacity, quantizer.latent_dim
        bounds = (0.01, 1.0) if quantizer.config.perturbation == "random_codebook" else (0.5, 2.0)
        scale = {"value": 0.8, "found_at": size, "bounds": bounds}
        queue = {"latents": session.normal(size, dim), "pushed": size}
        live = quantizer.live.state_dict()
        state = {"codebook_size": quantizer.codebook_size, "queue": queue, "live": live, "scale": scale}
        quantizer.training_state.load_state_dict(state)


def _trainer_synchronizations(session: Session, settings: dict, batch: int) -> int:
    """The number in a step that neither logs nor validates, by the package's own Trainer."""
    from accelerate import Accelerator

    from vpvae_hf.modalities.image import ImageModality
    from vpvae_hf.training.trainer import Trainer

    modality, length = ImageModality(), {"max_train_steps": 4, "lr_warmup_steps": 0, "logging_steps": 100}
    config = modality.config_class(quantizer=settings, losses={"l1": 1.0}, mixed_precision="bf16", **length)
    model = _vqgan(session)
    model.set_quantizer(settings)
    fill_queue(session, model.quantize)
    found: list[str] = []
    Trainer(
        model,
        under_watch(session, _images(session, batch), found),
        config,
        losses=modality.losses(config, model),
        loss_weights=config.loss_weights,
        accelerator=Accelerator(cpu=not session.on_cuda, mixed_precision="bf16"),
    ).run()
    return len(found)


def under_watch(session: Session, items: Iterable, found: list[str]) -> Iterator:
    """Yield items, and add to `found` the places of synchronizations between the third item and the next, of which
    torch's debug mode warns."""
    for number, item in enumerate(items):
        if number != 2:
            yield item
            continue
        if not session.on_cuda:
            yield item
            raise RuntimeError(
                "torch watches for synchronizations only on CUDA; benchmarks/counts counts without a GPU"
            )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield item
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found += [f"{each.filename}:{each.lineno}" for each in caught if "synchron" in str(each.message)]
        print("synchronizations at", *found)


def _trace(session: Session, model: nn.Module, batch: int, file: Path) -> str:
    step = Step(session, model, _images(session, batch), bf16=True)
    step(0)
    with torch.profiler.profile() as profile:
        for turn in range(_TRACED_STEPS):
            step(turn)
        session.wait()
    raw = file.with_suffix("")
    profile.export_chrome_trace(str(raw))
    with raw.open("rb") as source, gzip.open(file, "wb") as target:
        shutil.copyfileobj(source, target)
    raw.unlink()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=40))
    return f"{file.name}, {file.stat().st_size / 2**20:.1f} MiB"


def _extras(session: Session, batch: int, model: nn.Module) -> None:
    """Changes of the compiled step, one at a time."""
    plain = f"compiled bf16 FSP B={batch}"
    _image_step(session, f"{plain}, AdamW not fused", batch, model, fused=False)
    for foreach in (False, True):
        _image_step(session, f"{plain}, EMA foreach={foreach}", batch, model, foreach=foreach)
    with _flag(torch.backends.cudnn, "benchmark", True):
        _image_step(session, f"{plain}, cudnn.benchmark", batch, model)
    _image_step(session, f"{plain}, perceptual loss of a random VGG16", batch, model, loss=_vgg_loss(session))


@contextlib.contextmanager
def _flag(owner, name: str, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _vgg_loss(session: Session) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A loss as costly as LPIPS: features of VGG16's five blocks for both images."""
    widths = session.pick(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), ((4, 1),))
    blocks, channels = nn.ModuleList(), 3
    for number, (width, count) in enumerate(widths):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        blocks.append(nn.Sequential(*layers))
    blocks.requires_grad_(False).to(session.device)

    def loss(sample: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        total = sample.new_zeros(())
        for block in blocks:
            sample, inputs = block(sample), block(inputs)
            total = total + (sample - inputs).square().mean()
        return total

    return loss


def audio(session: Session) -> None:
    """Steps of the default codec, and how fast it encodes and decodes; a real-time factor below 1 is faster than real
    time."""
    for batch in session.pick((8, 32), (2,)):

        def make(batch: int = batch) -> Callable[[int], None]:
            segments = 0.1 * session.normal(4, batch, 1, session.pick(32000, 960))
            return Step(session, _codec(session), segments, bf16=True)

        session.time(f"step, eager bf16 FSP B={batch}, segments of 2 s", make, seconds=1.5)
    for batch, compiled in itertools.product(session.pick((1, 16), (1,)), session.pick((False, True), (False,))):
        for direction in ("encode", "decode"):
            _real_time_factor(session, direction, batch, compiled)
    for milliseconds in (6, 48):
        _streaming(session, milliseconds)


def _codec(session: Session, **settings) -> nn.Module:
    from vpvae_hf import VPCodecConfig, VPCodecModel

    torch.manual_seed(0)
    config = VPCodecConfig(**session.pick({}, _TINY_AUDIO), **settings, quantizer=_FSP)
    return VPCodecModel(config).to(session.device).eval()


def _real_time_factor(session: Session, direction: str, batch: int, compiled: bool) -> None:
    seconds = session.pick(10, 0.1)

    def make() -> Callable[[int], object]:
        codec = _codec(session)
        if compiled:
            codec.encoder.compile()
            codec.decoder.compile()
        audio = 0.1 * session.normal(4, batch, 1, round(seconds * codec.config.sampling_rate))
        if direction == "encode":
            return torch.no_grad()(lambda turn: codec.encode(audio[turn % 4]))
        with torch.no_grad():
            codes = [codec.encode(each).audio_codes for each in audio]
        return torch.no_grad()(lambda turn: codec.decode(codes[turn % 4]))

    name = f"{direction}, {seconds} s, batch of {batch}, {'compiled' if compiled else 'eager'}"
    milliseconds = session.time(name, make)
    session.figure(f"real-time factor: {name}", "", lambda: milliseconds / 1000 / seconds / batch)


def _streaming(session: Session, milliseconds: int) -> None:
    def chunk(direction: str) -> Callable[[], Callable[[int], object]]:
        def make() -> Callable[[int], object]:
            from vpvae_hf import StreamingDecoder, StreamingEncoder

            codec = _codec(session, causal=True)
            samples = round(milliseconds / 6) * codec.config.hop_length
            sound = 0.1 * session.normal(1, 1, samples)
            encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
            codes = encoder.encode(sound)
            ways = {"encode": lambda turn: encoder.encode(sound), "decode": lambda turn: decoder.decode(codes)}
            return torch.no_grad()(ways[direction])

        return make

    for direction in ("encode", "decode"):
        session.time(f"streaming, {direction} a chunk of {milliseconds} ms", chunk(direction))
