"""What the pipelines over codes share: how codes are drawn, and how they become images and audio.

Shapes: B sequences; [h, w] or [n] codes with G per token.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from vpvae_hf.metrics import image_grid
from vpvae_hf.models import AutoencoderVP, VPCodecModel
from vpvae_hf.settings import did_you_mean, require

from .vocabulary import CodeVocabulary


@dataclass
class GeneratedImages(BaseOutput):
    """Generated images.

    Attributes:
        images: a list of PIL images, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1]; None if only codes were
            wanted.
        codes: [B, h, w] or [B, h, w, G] int64.
    """

    images: Any
    codes: Tensor


@dataclass
class GeneratedAudio(BaseOutput):
    """Generated audio.

    Attributes:
        audios: an array [T] in [-1, 1] per clip, clips may differ in length; None if only codes were wanted.
        codes: [n] or [n, G] int64 per clip.
        sampling_rate: Hz.
    """

    audios: list[np.ndarray] | None
    codes: list[Tensor]
    sampling_rate: int


class CodePipeline(DiffusionPipeline):
    """A tokenizer and a transformer over its codes; subclasses say how the transformer makes new codes."""

    tokenizer: AutoencoderVP | VPCodecModel
    transformer: PreTrainedModel

    @property
    def vocabulary(self) -> CodeVocabulary:
        """What the transformer's ids stand for."""
        return CodeVocabulary.from_model(self.transformer)

    def _check_parts(self) -> None:
        """See that the tokenizer and the transformer belong together; raises as the constructors of subclasses say."""
        vocabulary, is_codec = self.vocabulary, isinstance(self.tokenizer, VPCodecModel)
        if vocabulary.is_audio != is_codec:
            raise ValueError(
                f"the {type(self.tokenizer).__name__} makes codes of {'clips, [n]' if is_codec else 'images, [h, w]'}, "
                f"but the model was trained on the grid {list(vocabulary.grid)}; load the tokenizer that made its codes"
            )
        vocabulary.check_model(self.transformer)
        vocabulary.check_tokenizer(self.tokenizer)

    def _output_type(self, output_type: str | None) -> str:
        """The wanted kind of output, or the usual one for None."""
        valid = ("np", "codes") if self.vocabulary.is_audio else ("pil", "np", "pt", "codes")
        output_type = output_type or valid[0]
        require(output_type in valid, "output_type", output_type, f"one of {', '.join(valid)}")
        return output_type

    def _conditions(
        self, class_labels: Tensor | list[int] | None, number: int, guidance_scale: float
    ) -> tuple[Tensor | None, int]:
        """The conditions as a tensor, and the number of sequences, which are as many as there are conditions."""
        conditions = None if class_labels is None else torch.as_tensor(class_labels)
        if conditions is None and guidance_scale != 1:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs class_labels to guide to; give them, or leave it at 1"
            )
        number = number if conditions is None else len(conditions)
        if number < 1:
            raise ValueError(f"at least one must be generated, got {number}")
        return conditions, number

    def _tokens(self, seconds: float | None, name: str) -> int:
        """The number of tokens of so many seconds of audio; as many as the model knows for None, and for images."""
        vocabulary = self.vocabulary
        most = math.prod(vocabulary.grid)
        if seconds is None:
            return most
        if not vocabulary.is_audio:
            raise ValueError(f"{name}={seconds} is for audio; images always have the size of the grid, leave it out")
        rate = self.tokenizer.config.frame_rate
        tokens = math.ceil(seconds * rate - 1e-6)
        if not 1 <= tokens <= most:
            raise ValueError(
                f"{name} must be above 0 and at most {most / rate:.3f}, as the model was trained, got {seconds}"
            )
        return tokens

    def _decoded(
        self, ids: list[Tensor], output_type: str, return_dict: bool
    ) -> GeneratedImages | GeneratedAudio | tuple:
        """What the tokenizer makes of sequences of ids of codes."""
        tokenizer, wanted = self.tokenizer, output_type != "codes"
        codes = [self.vocabulary.decode(row[None])[0] for row in ids]
        if self.vocabulary.is_audio:
            audios = [_waveform(tokenizer, clip) for clip in codes] if wanted else None
            made = GeneratedAudio(audios=audios, codes=codes, sampling_rate=tokenizer.config.sampling_rate)
            return made if return_dict else (audios, codes)
        codes, images = torch.stack(codes), None
        if wanted:
            sample = tokenizer.detokenize(codes.to(tokenizer.device))
            images = VaeImageProcessor().postprocess(sample.float(), output_type)
        return GeneratedImages(images=images, codes=codes) if return_dict else (images, codes)


def _waveform(codec: VPCodecModel, codes: Tensor) -> np.ndarray:
    """[T] of the codes of one clip."""
    return codec.detokenize(codes[None].to(codec.device))[0, 0].float().cpu().numpy()


def sampling_config(generation_config: GenerationConfig | None, settings: Mapping[str, Any]) -> GenerationConfig:
    """How transformers' `generate` draws codes: a copy of a config with changed settings, complete for sampling.

    Args:
        generation_config: None for one that draws from all codes as the model says.
        settings: fields of it, such as temperature, top_k, top_p, do_sample and guidance_scale.

    Raises:
        TypeError: a setting that `GenerationConfig` does not have.
        ValueError: top_p outside of (0, 1], which transformers would ignore.
    """
    config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    for name, value in settings.items():
        if not hasattr(config, name):
            raise TypeError(
                f"{name} is no argument of this pipeline, and no field of GenerationConfig; "
                f"{did_you_mean(name, vars(config))}"
            )
        setattr(config, name, value)
    config.guidance_scale = 1.0 if config.guidance_scale is None else config.guidance_scale
    config.do_sample = config.do_sample is not False and config.temperature != 0
    if not config.do_sample:
        config.temperature = config.top_k = config.top_p = None
        return config
    config.temperature = 1.0 if config.temperature is None else float(config.temperature)
    config.top_k = config.top_k or 0  # None would be transformers' own default, 50
    config.top_p = 1.0 if config.top_p is None else config.top_p
    require(0 < config.top_p <= 1, "top_p", config.top_p, "in (0, 1], or None for no limit")
    return config


class CodeConstraint(LogitsProcessor):
    """Lets `generate()` choose nothing but codes, and the end only where a sequence may end.

    Args:
        vocabulary: the model's.
        prompt_length: number of ids before the first code.
        shortest: number of ids of codes from which on a sequence may end.
        longest: number of ids of codes at which it must end.
    """

    def __init__(self, vocabulary: CodeVocabulary, *, prompt_length: int, shortest: int, longest: int):
        self._vocabulary, self._prompt_length = vocabulary, prompt_length
        self._shortest, self._longest = shortest, longest

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary, made = self._vocabulary, input_ids.shape[1] - self._prompt_length
        allowed = torch.full_like(scores, -torch.inf)
        if made < self._longest:
            codes = slice(vocabulary.first_code, vocabulary.begin)
            allowed[:, codes] = scores[:, codes]
        if made >= self._shortest and made % vocabulary.code_groups == 0:
            allowed[:, vocabulary.end] = scores[:, vocabulary.end] if made < self._longest else 0
        return allowed


def for_each_generator(
    make: Callable[[slice, torch.Generator | None], list[Tensor]],
    number: int,
    generator: torch.Generator | list[torch.Generator] | None,
) -> list[Tensor]:
    """What `make(rows, generator)` makes of all rows at once, or of each row with a generator of its own.

    Raises:
        ValueError: another number of generators than rows.
    """
    if not isinstance(generator, list | tuple):
        return make(slice(number), generator)
    if len(generator) != number:
        raise ValueError(f"generator has {len(generator)} for {number} to generate; give one, or one for each")
    # One after the other: libraries draw for a whole batch at once, so each row would depend on the others.
    return [made for row, each in enumerate(generator) for made in make(slice(row, row + 1), each)]


@contextlib.contextmanager
def seeded_by(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """A block in which torch's global generators follow `generator`, for libraries that draw from them alone.

    `generator` goes on by one draw; afterwards the global ones are as before.

    Args:
        generator: None changes nothing.
        device: its global generator follows, in addition to the CPU's.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield


def write_samples(
    pipeline: CodePipeline, folder: Path, *, number: int, class_labels: list[int] | None, generator: torch.Generator
) -> None:
    """Generate images or clips into a folder: samples.png, or samples.flac with one clip after the other."""
    made = pipeline(class_labels, num_images=number, generator=generator, output_type="np")
    if isinstance(made, GeneratedImages):
        images = torch.from_numpy(made.images).movedim(-1, 1) * 2 - 1
        Image.fromarray(image_grid([images])).save(folder / "samples.png")
        return
    import soundfile

    pause = np.zeros(made.sampling_rate // 2, np.float32)
    joined = np.concatenate([part for clip in made.audios for part in (clip, pause)])
    soundfile.write(folder / "samples.flac", joined.clip(-1, 1), made.sampling_rate)
