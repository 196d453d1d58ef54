"""Images and audio for training and evaluation."""

from .audio import AudioClip, AudioSegment, MaskedAudioSegment, read_audio
from .code_files import CodeFiles
from .code_folder import CodeFolder
from .code_manifest import claim_folder, write_totals
from .coders import AudioCoder, Coder, ImageCoder, code_dtype
from .images import ImageCrop, center_crops, load_images, load_photographs, random_crops, to_pixel_values
from .sources import Source, Transform, UnreadableFileError, open_audio, open_images
from .streams import ItemLoader, ItemStream, check_readable

__all__ = [
    "AudioClip",
    "AudioCoder",
    "AudioSegment",
    "CodeFiles",
    "CodeFolder",
    "Coder",
    "ImageCoder",
    "ImageCrop",
    "ItemLoader",
    "ItemStream",
    "MaskedAudioSegment",
    "Source",
    "Transform",
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
