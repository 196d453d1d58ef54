"""What is imported when, and that transformers and diffusers find our classes whatever was imported first."""

import subprocess
import sys

import pytest

import vpvae_hf
from tiny import FSP, tiny_codec, tiny_vae
from tiny_pipelines import built


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved image tokenizer, a saved audio tokenizer, and a pipeline that holds the image tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    images = tiny_vae(FSP)
    images.save_pretrained(folder / "images")
    tiny_codec(FSP).save_pretrained(folder / "audio")
    built("LDM", images).save_pretrained(folder / "pipeline")
    return folder


def in_a_fresh_process(script: str, *arguments) -> str:
    """What a script prints; `loaded(name)` in it are the modules within a package that are imported."""
    start = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "loaded = lambda name: sorted(each for each in sys.modules if f'{each}.'.startswith(f'{name}.'))\n"
    )
    command = [sys.executable, "-c", start + script, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_package_alone_imports_no_library():
    script = "import vpvae_hf; vpvae_hf.__version__; print([loaded(each) for each in sys.argv[1:]])"
    libraries = ("torch", "transformers", "diffusers", "numpy", "huggingface_hub")
    assert in_a_fresh_process(script, *libraries) == str([[]] * len(libraries))


def test_imports_do_not_wait_for_the_garbage_collector():
    script = (
        "import gc, vpvae_hf; passes = []; gc.callbacks.append(lambda phase, info: passes.append(phase))\n"
        "vpvae_hf.AutoencoderVP; print(len(passes), gc.isenabled(), len(loaded('torch')) > 100)\n"
        "gc.disable(); vpvae_hf.VPCodecModel; print(gc.isenabled())"
    )
    assert in_a_fresh_process(script) == "0 True True\nFalse"


def test_every_public_name_is_listed_and_found():
    assert set(vpvae_hf.__all__) <= set(dir(vpvae_hf))
    for name in vpvae_hf.__all__:
        assert getattr(vpvae_hf, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'vpvae_hf' has no attribute 'AutoencoderVQ'"):
        vpvae_hf.AutoencoderVQ  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'VPCodec'"):
        from vpvae_hf.models import VPCodec  # noqa: F401


LOADED_BY_AUTO_CLASSES = """
import vpvae_hf
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoModelForAudioTokenization
assert type(AutoImageProcessor.from_pretrained(images)) is vpvae_hf.VPImageProcessor
assert type(AutoFeatureExtractor.from_pretrained(audio)).__name__ == "VPCodecFeatureExtractor"
model = AutoModelForAudioTokenization.from_pretrained(audio)
assert type(model) is type(AutoModel.from_pretrained(audio)) is vpvae_hf.VPCodecModel
assert type(AutoModel.from_config(AutoConfig.from_pretrained(audio))) is vpvae_hf.VPCodecModel
assert type(AutoConfig.for_model("vp_codec")) is vpvae_hf.VPCodecConfig
assert AutoModel._model_mapping[vpvae_hf.VPCodecConfig] is vpvae_hf.VPCodecModel
"""
LOADED_BY_DIFFUSERS = """
import diffusers, vpvae_hf
assert type(diffusers.AutoModel.from_pretrained(images)) is vpvae_hf.AutoencoderVP
assert type(diffusers.DiffusionPipeline.from_pretrained(pipeline).vqvae) is vpvae_hf.AutoencoderVP
assert diffusers.AutoencoderVP is vpvae_hf.AutoencoderVP
assert not hasattr(diffusers, "VPCodecModel")
"""
# Scripts and what they print.
THE_LIBRARIES = (
    "from transformers import AutoModel, AutoFeatureExtractor; from diffusers import AutoModel, DiffusionPipeline",
    [],
)
AUDIO_WITHOUT_DIFFUSERS = (
    "import torch; from vpvae_hf import VPCodecModel; codec = VPCodecModel.from_pretrained(audio)\n"
    "codes = codec.encode(torch.zeros(1, 1, 960)).audio_codes; codec.decode(codes)\n"
    "print(tuple(codes.shape), loaded('diffusers'))",
    ["(1, 1, 10) []"],
)
# Of transformers' models, only those that diffusers' own autoencoders import.
IMAGES_WITHOUT_AUDIO_MODELS = (
    "import torch; from diffusers import VQModel; before = loaded('transformers.models')\n"
    "from vpvae_hf import AutoencoderVP; vae = AutoencoderVP.from_pretrained(images)\n"
    "codes = vae.tokenize(torch.zeros(1, 3, 8, 8)); vae.detokenize(codes)\n"
    "print(tuple(codes.shape), [each for each in loaded('vpvae_hf.models') if 'codec' in each])\n"
    "print([each for each in loaded('transformers.models') if '.modeling_' in each and each not in before])",
    ["(1, 2, 2) []", "[]"],
)


@pytest.mark.parametrize(
    ("first", "diffusers_first"),
    [
        (THE_LIBRARIES, False),
        (AUDIO_WITHOUT_DIFFUSERS, True),
        (IMAGES_WITHOUT_AUDIO_MODELS, False),
    ],
    ids=["the libraries", "audio", "images"],
)
def test_what_is_imported_and_that_the_libraries_find_our_classes(first, diffusers_first, folders):
    """Whatever was imported first, and although only `import vpvae_hf` was executed."""
    script, printed = first
    loading = [LOADED_BY_AUTO_CLASSES, LOADED_BY_DIFFUSERS]
    if diffusers_first:
        loading.reverse()
    script = "\n".join(["images, audio, pipeline = sys.argv[1:]", script, *loading])
    found = in_a_fresh_process(script, folders / "images", folders / "audio", folders / "pipeline")
    assert found.splitlines() == printed
