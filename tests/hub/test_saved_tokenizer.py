"""What a folder holds is told from the names of its files."""

import pytest

from vpvae_hf.hub.saved import weights_set


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "pytorch_model", "model"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_of_one_model_have_one_set(name, kind):
    files = [f"{name}.{kind}", f"{name}-00001-of-00002.{kind}", f"{name}.{kind}.index.json"]
    assert {weights_set(file) for file in files} == {""}
    variants = [f"{name}.fp16.{kind}", f"{name}.fp16-00001-of-00002.{kind}", f"{name}-00001-of-00002.fp16.{kind}"]
    variants += [f"{name}.{kind}.index.fp16.json"]
    assert {weights_set(file) for file in variants} == {".fp16"}


@pytest.mark.parametrize(
    "name",
    ["config.json", "model_index.json", "model.json", "modelcard.json", "model.onnx", "my_model.safetensors",
     "pytorch_model_fsdp.bin", "model.safetensors.part", "adapter_model.safetensors", "optimizer.bin"],
)  # fmt: skip
def test_other_files_hold_no_weights_of_the_model(name):
    assert weights_set(name) is None
