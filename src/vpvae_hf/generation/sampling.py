"""What the pipelines over codes share: their parts, and how codes become images and audio.

Shapes: B sequences; [h, w] or [n] codes with G per token.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vpvae_hf.data import CodeFolder
from vpvae_hf.files import open_to_usual_readers
from vpvae_hf.hub import class_in, push_pipeline
from vpvae_hf.models.persistence import checked_dtype
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.settings import refuse_unknown_arguments, require

from .output import write_generated
from .texts import prompt_ids, text_ids
from .vocabulary import CodeVocabulary, checked_conditions

# Ids or names of classes, texts, or ids of texts.
Conditions = Tensor | np.ndarray | Sequence[int | str] | Sequence[Sequence[int]] | str


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
        sampling_rate: Hz; None if the tokenizer's config has none, since its signals are not audio.
    """

    audios: list[np.ndarray] | None
    codes: list[Tensor]
    sampling_rate: int | None


class CodePipeline(DiffusionPipeline):
    """A tokenizer and a transformer over its codes; subclasses say how the transformer makes new codes."""

    tokenizer: Tokenizer
    transformer: PreTrainedModel
    text_tokenizer: PreTrainedTokenizerBase | None
    _optional_components: ClassVar[list[str]] = ["text_tokenizer"]  # diffusers looks for this name

    def __init__(self, **parts: Any):
        super().__init__()
        self.register_modules(**parts)
        self.vocabulary.check_model(self.transformer)
        self.vocabulary.check_tokenizer(self.tokenizer)
        if self.text_tokenizer is not None and len(self.text_tokenizer) != self.vocabulary.condition_size:
            raise ValueError(
                f"the text_tokenizer has {len(self.text_tokenizer)} ids, the model was trained with "
                f"{self.vocabulary.condition_size} ids of conditions; give the one that it was trained with"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> Self:
        """Load a folder or a hub id; arguments as in diffusers.

        Raises a ValueError for a folder that holds another pipeline, or a tokenizer alone, and for parts that do not
        belong together.
        """
        name = pretrained_model_name_or_path
        for argument in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(argument), str):
                kwargs[argument] = checked_dtype(kwargs[argument])
        try:
            return super().from_pretrained(name, **kwargs)
        except (OSError, ValueError) as error:
            found = class_in(name)
            if found in (None, cls.__name__):
                raise
            raise ValueError(
                f"{name} holds a {found}, not a {cls.__name__}; load it with {found}.from_pretrained"
            ) from error

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Save the parts and the index of the pipeline; arguments as in diffusers.

        With `push_to_hub` the folder is then pushed by `vpvae_hf.hub.push_pipeline`, whose arguments can also be
        given here; `repo_id` is by default the folder's name.
        """
        known = signature(push_pipeline).parameters
        refuse_unknown_arguments(kwargs, "save_pretrained", (*signature(self.save_pretrained).parameters, *known))
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size)
        open_to_usual_readers(save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            push_pipeline(save_directory, repo_id, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        max_shard_size: int | str | None = None,
        **kwargs,
    ) -> str:
        """Push the pipeline with a card; arguments are those of diffusers and of `vpvae_hf.hub.push_pipeline`."""
        known = signature(push_pipeline).parameters
        refuse_unknown_arguments(kwargs, "push_to_hub", (*signature(self.push_to_hub).parameters, *known))
        pushing = {"commit_message": commit_message, "private": private, "token": token, "create_pr": create_pr}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization, variant, max_shard_size)
            return push_pipeline(folder, repo_id, subfolder=subfolder, **pushing, **kwargs)

    @property
    def vocabulary(self) -> CodeVocabulary:
        """The meaning of the transformer's ids."""
        return CodeVocabulary.from_model(self.transformer)

    def _output_type(self, output_type: str | None) -> str:
        """The output type, or the default one for None; a ValueError if the model cannot make it."""
        valid = ("np", "codes") if self.vocabulary.is_audio else ("pil", "np", "pt", "codes")
        output_type = output_type or valid[0]
        require(output_type in valid, "output_type", output_type, f"one of {', '.join(valid)}")
        if output_type != "codes":  # another codebook may have been selected since the pipeline was made
            self.vocabulary.check_selected(self.tokenizer)
        return output_type

    def _conditions(
        self, class_labels: Conditions | None, prompt: str | list[str] | None, number: int, guidance_scale: float
    ) -> tuple[Tensor | None, int]:
        """The conditions as a tensor, and the number of sequences: that of the conditions, if there are any."""
        if prompt is not None:
            if class_labels is not None:
                raise ValueError("prompt stands in place of class_labels; give one of the two")
            if self.text_tokenizer is None:
                what = "trained on classes" if self.vocabulary.condition_size else "trained without conditions"
                raise ValueError(f"prompt={prompt!r} is for models that were trained on texts; this one was {what}")
            class_labels = prompt
        conditions = None if class_labels is None else checked_conditions(self._ids_of(class_labels, number))
        if conditions is None and guidance_scale != 1:
            given = "class_labels" if self.text_tokenizer is None else "a prompt"
            raise ValueError(f"guidance_scale={guidance_scale} needs {given} to guide to; without that, leave it at 1")
        number = number if conditions is None else len(conditions)
        if number < 1:
            raise ValueError(f"at least one must be generated, got {number}")
        return conditions, number

    def _ids_of(self, labels: Conditions, number: int) -> Any:
        """The labels with ids in place of names or texts; a single name or text is repeated."""
        if isinstance(labels, str):
            labels = [labels] * number
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO":
            labels = labels.tolist()
        if not isinstance(labels, list | tuple) or not any(isinstance(each, str) for each in labels):
            return labels
        if self.text_tokenizer is None:
            return self.vocabulary.class_ids(labels)
        return prompt_ids(self.text_tokenizer, labels, self.vocabulary.condition_length)

    def _length(self, seconds: float | None, name: str) -> int:
        """The number of ids for that many seconds of audio; the model's largest number for None, and for images."""
        most, groups = math.prod(self.vocabulary.grid), self.vocabulary.code_groups
        if seconds is None:
            return most * groups
        rate = getattr(self.tokenizer.config, "frame_rate", None)
        if rate is None:
            raise ValueError(f"{name}={seconds} is for audio; images always have the size of the grid, leave it out")
        tokens = math.ceil(seconds * rate - 1e-6)
        valid = f"above 0 and at most {most / rate:.3f}, as the model was trained"
        require(1 <= tokens <= most, name, seconds, valid)
        return tokens * groups

    def _decoded(
        self, ids: list[Tensor], output_type: str, return_dict: bool
    ) -> GeneratedImages | GeneratedAudio | tuple:
        """The images or the audio that the tokenizer decodes from sequences of ids of codes."""
        tokenizer, signals = self.tokenizer, None
        codes = [self.vocabulary.decode(row[None])[0] for row in ids]
        if self.vocabulary.is_audio:
            if output_type != "codes":  # one after the other, since clips may differ in length
                made = (tokenizer.detokenize(clip[None].to(tokenizer.device))[0, 0] for clip in codes)
                signals = [audio.float().cpu().numpy() for audio in made]
            rate = getattr(tokenizer.config, "sampling_rate", None)
            return GeneratedAudio(signals, codes, rate) if return_dict else (signals, codes)
        codes = torch.stack(codes)
        if output_type != "codes":
            images = tokenizer.detokenize(codes.to(tokenizer.device))
            signals = VaeImageProcessor().postprocess(images.float(), output_type)
        return GeneratedImages(signals, codes) if return_dict else (signals, codes)


def for_each_generator(
    make: Callable[[slice, torch.Generator | None], list[Tensor]],
    number: int,
    generator: torch.Generator | list[torch.Generator] | None,
) -> list[Tensor]:
    """The results of `make(rows, generator)` for all rows at once, or for each row with its own generator."""
    if not isinstance(generator, list | tuple):
        return make(slice(number), generator)
    if len(generator) != number:
        raise ValueError(f"generator is a list of {len(generator)} for {number} to generate; give one, or one for each")
    # One after the other: libraries draw for a whole batch at once, so each row would depend on the others.
    return [made for row, each in enumerate(generator) for made in make(slice(row, row + 1), each)]


def write_samples(
    pipeline: CodePipeline, folder: Path, codes: CodeFolder, *, number: int, seed: int
) -> list[int | str] | None:
    """Generate images or clips with the conditions of the first codes, write them to a folder, return the conditions.

    It writes only the file that joins all samples, and nothing for signals that are neither images nor audio.
    """
    conditions = codes.first_conditions(number)
    generator = torch.Generator().manual_seed(seed)
    labels = conditions
    if conditions is not None and codes.is_text:  # cut, as in training
        labels = text_ids(pipeline.text_tokenizer, conditions, pipeline.vocabulary.condition_length)
    made = pipeline(labels, num_images=number, generator=generator, output_type="np")
    if isinstance(made, GeneratedImages) or made.sampling_rate is not None:
        write_generated(made.get("images", made.get("audios")), folder, sampling_rate=made.get("sampling_rate"))
    return conditions
