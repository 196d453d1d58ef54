"""What differs on the Hub between tokenizers of images and of audio; the cards' words lie in `model_cards`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Modality:
    """A kind of signal, and how the Hub shows its tokenizers.

    Attributes:
        name: as in `model_cards/usage_{name}.md`.
        library: the library whose `from_pretrained` reads the folder.
        pipeline_tag: task under which the Hub lists the model.
        task: task under which results are listed.
        counted: what an evaluation counts; its key in results.json.
        sounds: title -> file that the card plays where the folder has it.
        downsampling: config -> f, the values along each axis of the signal that one code stands for.
    """

    name: str
    library: str
    pipeline_tag: str
    task: str
    counted: str
    sounds: Mapping[str, str] = field(default_factory=dict)
    downsampling: Callable[[dict[str, Any]], int]


# By the class that a config names.
MODALITIES = {
    "AutoencoderVP": Modality(
        name="image",
        library="diffusers",
        pipeline_tag="image-feature-extraction",
        task="image-reconstruction",
        counted="images",
        downsampling=lambda config: 2 ** (len(config["block_out_channels"]) - 1),
    ),
    "VPCodecModel": Modality(
        name="audio",
        library="transformers",
        # Where the Hub lists EnCodec, DAC and Mimi.
        pipeline_tag="feature-extraction",
        task="audio-reconstruction",
        counted="clips",
        sounds={"Original": "original.flac", "Reconstruction": "reconstruction.flac"},
        downsampling=lambda config: math.prod(config["downsampling_ratios"]),
    ),
}
