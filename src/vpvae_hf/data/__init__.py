"""Images and audio for training and evaluation."""

from .audio_decoding import read_audio
from .code_files import CodeFiles
from .code_folder import CodeFolder
from .code_manifest import claim_folder, write_totals
from .coders import AudioCoder, Coder, ImageCoder, code_dtype
from .crops import center_crops, random_crops, to_pixel_values
from .cuts import AudioClip, AudioSegment, Cut, ImageCrop, MaskedAudioSegment
from .files import UnreadableFileError
from .in_memory import load_images
from .photographs import load_photographs
from .source import Source, check_readable, open_audio, open_images
from .stream import SampleLoader, SampleStream

__all__ = [
    "AudioClip",
    "AudioCoder",
    "AudioSegment",
    "CodeFiles",
    "CodeFolder",
    "Coder",
    "Cut",
    "ImageCoder",
    "ImageCrop",
    "MaskedAudioSegment",
    "SampleLoader",
    "SampleStream",
    "Source",
    "UnreadableFileError",
    "center_crops",
    "check_readable",
    "claim_folder",
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
