"""Images and audio for training and evaluation."""

from .audio_decoding import read_audio
from .codes import CodeFiles, CodeFolder, claim_code_folder, code_dtype, write_totals
from .crops import center_crops, random_crops, to_pixel_values
from .cuts import AudioClip, AudioSegment, Cut, ImageCrop, MaskedAudioSegment
from .cuts import Cut as Transform
from .files import UnreadableFileError
from .in_memory import load_images
from .photographs import load_photographs
from .source import Source, check_readable, open_audio, open_images
from .stream import SampleLoader, SampleStream
from .stream import SampleLoader as ItemLoader
from .stream import SampleStream as ItemStream

__all__ = [
    "AudioClip",
    "AudioSegment",
    "CodeFiles",
    "CodeFolder",
    "Cut",
    "ImageCrop",
    "ItemLoader",
    "ItemStream",
    "MaskedAudioSegment",
    "SampleLoader",
    "SampleStream",
    "Source",
    "Transform",
    "UnreadableFileError",
    "center_crops",
    "check_readable",
    "claim_code_folder",
    "code_dtype",
    "load_images",
    "load_photographs",
    "open_audio",
    "open_images",
    "random_crops",
    "read_audio",
    "to_pixel_values",
    "write_totals",
]
