import importlib.util
import os
import tempfile

# oneDNN's AMX kernels give wrong results for strided bfloat16 convolutions of 4 to 16 channels (seen with torch 2.13),
# which only tiny models have; without them tests also round alike on more processors. Read when torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")

import pytest
import torch

# Tests use small tensors, which one thread serves best; more would only get in each other's way.
torch.set_num_threads(1)

# The `datasets` library has a cache of this run alone, also in processes that tests start. Read when it is imported.
_CACHE = tempfile.TemporaryDirectory(prefix="datasets-", ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
# Its counter of downloads looks up the name of a server, which takes seconds where there is no network.
os.environ["HF_UPDATE_DOWNLOAD_COUNTS"] = "0"

# Without a GPU the CUDA kernels run in triton's interpreter, which must be chosen before anything imports them.
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


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
