import gc
import importlib.util
import os
import tempfile
from pathlib import Path

# oneDNN's AMX kernels give wrong results for strided bfloat16 convolutions of 4 to 16 channels (seen with torch 2.13),
# which only tiny models have; without them tests also round alike on more processors. Read when torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

import pytest
import torch

# Tests use small tensors, which one thread serves best; more would only get in each other's way.
torch.set_num_threads(1)

# The libraries `datasets` and `evaluate` have caches of this run alone, also in processes that tests start. Read when
# they are imported. Python keeps the modules that `evaluate` loads, so a process must not find them in two folders.
_CACHE = tempfile.TemporaryDirectory(prefix="datasets-", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["HF_MODULES_CACHE"] = f"{_CACHE.name}/modules"
# Tests have a hub of their own on this computer, which offline mode would not ask. Read when libraries are imported.
os.environ.pop("HF_HUB_OFFLINE", None)
# Its counter of downloads looks up the name of a server, which takes seconds where there is no network.
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

# Without a GPU the CUDA kernels run in triton's interpreter, which must be chosen before anything imports them.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


# The files that take longest are begun first, so that no worker of pytest-xdist has one of them left at the end.
_LONGEST = [
    "modalities/test_ray",
    "examples/test_examples",
    "examples/test_quickstart",
    "app/test_browser",
    "recipes/test_generation_recipes",
    "hub/test_printed_programs",
    "docs/test_docs",
    "neighbors/test_index",
    "contract/test_quantizer_contract",
    "training/test_run",
    "training/test_audio_run",
    "generation/test_pipelines",
    "data/test_streams",
    "distributed/test_training",
    "recipes/test_diffusion_recipe",
    "models/test_graphs",
    "cli/test_demo",
    "quantizers/test_vp_scale",
    "neighbors/test_compilation",
    "test_lazy_imports",
    "modalities/test_execution",
]


def pytest_configure(config):
    config.option.loadscopereorder = False  # otherwise by the number of tests


def pytest_collection_modifyitems(items):
    tests = Path(__file__).parent
    places = {tests / f"{name}.py": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish():
    # Nothing that was imported becomes garbage, but each run of accelerate searches all objects for garbage.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # libraries report what is left at the end


@pytest.fixture(params=["image", "audio"])
def modality(request):
    return request.param


@pytest.fixture
def build(modality):
    """What makes the modality's tiny tokenizer."""
    import tiny

    return tiny.MODELS[modality][0]


@pytest.fixture
def inputs(modality):
    """Two signals for that tokenizer."""
    import tiny

    return tiny.MODELS[modality][1]


@pytest.fixture
def model_class(modality):
    import vpvae_hf

    return {"image": vpvae_hf.AutoencoderVP, "audio": vpvae_hf.VPCodecModel}[modality]
