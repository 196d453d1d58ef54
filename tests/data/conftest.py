import audio_files
import image_shards
import pytest


@pytest.fixture(params=["image", "audio"])
def modality(request):
    """The module that makes data sets of a modality."""
    return {"image": image_shards, "audio": audio_files}[request.param]
