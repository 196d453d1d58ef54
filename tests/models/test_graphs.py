"""Graphs that torch makes of tokenizers give the codes and signals of the tokenizers themselves."""

import io

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.testing import assert_close

from tiny import CLOSE, QUANTIZER_SETTINGS, batch_of, fit_to, is_fitted, noise, noise_images, tiny_codec, tiny_vae
from vpvae_hf.neighbors import nearest_in_graph, nearest_point
from vpvae_hf.quantizers import QUANTIZERS, build_quantizer

pytestmark = [
    pytest.mark.usefixtures("no_gradients"),
    # Of torch and of its exporter.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Method(nn.Module):
    """A method of a model as the forward pass of a module, which is what torch exports."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs):
        return getattr(self.model, self.name)(*inputs)


class RoundTrip(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, *inputs):
        codes = self.quantizer.encode(*inputs)
        return codes, self.quantizer.decode(codes)


def check(graph, method, *inputs):
    """Codes are equal, and signals are equal up to rounding."""
    assert_close(graph(*inputs), method(*inputs), **CLOSE)


def exported(method, example, axes):
    """The method's program for any size of those axes, after saving and loading it."""
    program = torch.export.export(method, (example,), dynamic_shapes=((dict.fromkeys(axes, Dim.DYNAMIC),),))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def small_vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return tiny_vae(**blocks, block_out_channels=(8,), mid_block_add_attention=False)


def small_codec():
    return tiny_codec(num_hidden_layers=1, downsampling_ratios=[2])


@pytest.mark.parametrize("variant", [*(f"{kind}-0" for kind in QUANTIZERS if kind != "none"), "simvq-1", "fsq-2"])
def test_every_quantizer_is_exported_for_any_number_of_latents(variant):
    torch.manual_seed(0)
    quantizer = build_quantizer(QUANTIZER_SETTINGS[variant]).eval()
    if is_fitted(quantizer):
        fit_to(quantizer, torch.randn(quantizer.codebook_size, quantizer.latent_dim))
    latents = torch.randn(50, quantizer.latent_dim)
    program = exported(RoundTrip(quantizer), latents, axes=(0,))
    for count in (50, 7):
        check(program, RoundTrip(quantizer), latents[:count])


@pytest.mark.parametrize(("size", "dim"), [(16, 1), (1000, 4), (300, 16)])
def test_the_nearest_code_in_a_graph_is_that_of_the_search(size, dim):
    queries, points = torch.randn(4000, dim), torch.randn(size, dim)
    assert torch.equal(nearest_in_graph(queries, points), nearest_point(queries, points)[1])


def test_one_program_takes_images_of_every_size():
    tokenize = Method(small_vae(), "tokenize")
    program = exported(tokenize, noise_images(2, 8, 6), axes=(0, 2, 3))
    for images in (noise_images(2, 8, 6), noise_images(1, 16, 24)):
        check(program, tokenize, images)


def test_one_program_takes_audio_of_every_length():
    tokenize = Method(small_codec(), "tokenize")
    program = exported(tokenize, noise(2, 100), axes=(0, 2))
    for audio in (noise(2, 100), noise(3, 333), noise(1, 21)):
        check(program, tokenize, audio)


def test_a_compiled_image_tokenizer():
    vae, images = small_vae(), noise_images(2, 8, 6)
    torch._dynamo.reset()
    made, expected = torch.compile(vae, fullgraph=True, backend="eager")(images), vae(images)
    assert torch.equal(made.codes, expected.codes)
    assert_close(made.sample, expected.sample, **CLOSE)


def test_a_model_in_train_mode_is_not_exported():
    with pytest.raises(Exception, match=r"call model.eval\(\) first"):
        exported(Method(small_vae().train(), "forward"), noise_images(2, 8, 6), axes=(0,))


def test_a_compiled_codec_takes_padded_audio():
    codec = small_codec()
    torch._dynamo.reset()
    compiled = torch.compile(codec, fullgraph=True, backend="eager")
    audio, mask = batch_of([100, 33])
    made, expected = compiled(audio, mask), codec(audio, mask)
    assert torch.equal(made.audio_codes, expected.audio_codes)
    assert torch.equal(made.audio_codes_mask, expected.audio_codes_mask)
    assert_close(made.audio_values, expected.audio_values, **CLOSE)


def test_traced_programs_take_other_inputs():
    tokenize = Method(small_codec(), "tokenize")
    traced = torch.jit.trace(tokenize, batch_of([100, 33]), check_trace=False)
    check(traced, tokenize, *batch_of([150, 20, 150], seed=5))
    tokenize = Method(small_vae(), "tokenize")
    check(torch.jit.trace(tokenize, (noise_images(),), check_trace=False), tokenize, noise_images(1, 16, 24))


def test_onnx_programs_have_the_same_codes():
    tokenize, images = Method(small_vae(), "tokenize"), noise_images(2, 8, 8)
    program = torch.onnx.export(tokenize, (images,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (codes,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.equal(torch.from_numpy(codes), tokenize(images))
