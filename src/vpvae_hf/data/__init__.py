"""Images and audio for training and evaluation."""

from vpvae_hf.lazy import lazy_names
from vpvae_hf.pixels import to_pixel_values
from vpvae_hf.unreadable import UnreadableFileError

from .audio import AudioClip, AudioSegment, MaskedAudioSegment, read_audio
from .code_file import Packing, read_codes, write_codes
from .code_folder import CodeFolder
from .codes import CodeFiles, claim_code_folder, code_dtype, write_totals
from .folders import readable_suffixes
from .images import ImageCrop, center_crops, load_images, load_photographs, random_crops
from .sources import Source, Transform, open_audio, open_images
from .streams import ItemLoader, ItemStream, check_readable
from .voices import synthetic_voice

__all__ = [
    "AudioClip",
    "AudioSegment",
    "CodeFiles",
    "CodeFolder",
    "ImageCrop",
    "ItemLoader",
    "ItemStream",
    "MaskedAudioSegment",
    "Packing",
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
    "read_codes",
    "readable_suffixes",
    "synthetic_voice",
    "to_pixel_values",
    "write_codes",
    "write_totals",
]
_FORMER = {"Cut": "Transform", "SampleLoader": "ItemLoader", "SampleStream": "ItemStream"}
__getattr__, __dir__ = lazy_names(__name__, {}, _FORMER)
