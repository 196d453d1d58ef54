"""What every modality has to do: images, audio, and one of series of numbers that is defined here and nowhere else."""

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import audio_runs
import datasets
import image_runs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from vpvae_hf import CodebookNotFittedError, VPAutoregressivePipeline
from vpvae_hf.cli.main import main
from vpvae_hf.data import CodeFolder, ItemLoader, ItemStream, Source, Transform
from vpvae_hf.generation import (
    CausalBatches,
    CodeSequences,
    causal_likelihood,
    load_code_tokenizer,
    new_transformer,
    vocabulary_of,
)
from vpvae_hf.hub import HubEntry
from vpvae_hf.modalities import MODALITIES, Batches, Modality, load_tokenizer, modality_of
from vpvae_hf.modalities.config import DataConfig, TrainingConfig, option
from vpvae_hf.models.tokenizer import Tokenizer
from vpvae_hf.quantizers import build_quantizer, quantizer_config
from vpvae_hf.training.config import parse_config
from vpvae_hf.training.run import train_tokenizer

VECTOR = {"kind": "vp", "codebook_size": 8, "latent_dim": 2, "queue_share": 0.1}


# A modality: a model, how a file is read, and what differs. With this class in `MODALITIES` it can do all that the
# others can.
class SeriesTokenizer(Tokenizer, nn.Module):
    """Series [B, 1, T], four numbers per code."""

    hub_entry = HubEntry(
        name="series", library="torch", task="series-reconstruction", items="series",
        downsampling=lambda config: 4,
    )  # fmt: skip
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.decoder = nn.Conv1d(1, 2, 4, 4), nn.ConvTranspose1d(2, 1, 4, 4)
        self.quantize = build_quantizer(quantizer_config(quantizer))
        self.config = SimpleNamespace(scaling_factor=1.0)
        self._sync_config()

    def forward(self, series):
        output = self.quantize(self.encoder(series).mT)
        return SimpleNamespace(sample=self.decoder(output.latents.mT), loss=output.loss, metrics=output.metrics)

    @torch.no_grad()
    def latent_vectors(self, inputs, padding_mask=None):
        return self.quantize.to_latents(self.encoder(inputs).mT)

    @torch.no_grad()
    def decode_vectors(self, vectors):
        return self.decoder(vectors.mT)

    def detokenize(self, codes):
        return self.decode_vectors(self.quantize.decode(codes))

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps({"_class_name": "SeriesTokenizer", **vars(self.config)}))
        save_file(self.state_dict(), Path(folder, "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder):
        config = json.loads(Path(folder, "config.json").read_text())
        model = cls(config["quantizer"])
        model.load_state_dict(load_file(Path(folder, "model.safetensors")))
        model._set_config(**config)
        return model

    def _encoder_parts(self):
        return (self.encoder,)

    def _replace_projections(self):
        raise NotImplementedError

    def _set_config(self, **settings):
        vars(self.config).update(settings)

    def _sync_config(self):
        self._set_config(quantizer=self.quantize.config.to_dict())


@dataclass(frozen=True)
class SeriesTransform(Transform):
    """The first numbers of a series."""

    kind = "series"
    size: int

    def read(self, file, rng):
        return torch.tensor(file[: self.size])

    def model_input(self, batch):
        return batch.unsqueeze(1)


def open_series(name, *, split, config, revision, column, streaming, other_columns):
    rows = datasets.load_dataset(name, split=split, streaming=True)
    return Source(name, rows if other_columns else rows.select_columns(["series"]), "series")


@dataclass
class SeriesDataConfig(DataConfig):
    size: int = option(16, "numbers of a series that are read")


@dataclass
class SeriesTrainingConfig(TrainingConfig):
    data: SeriesDataConfig = field(default_factory=SeriesDataConfig)


class SeriesModality(Modality):
    model_class, config_class = SeriesTokenizer, SeriesTrainingConfig
    train_items, headline_metrics, written_suffixes = "series", ("error",), (".txt",)
    rate_unit = "bits per number"
    _open = staticmethod(open_series)

    def new_model(self, config):
        return SeriesTokenizer(config.quantizer)

    def losses(self, config, model):
        return {"l1": nn.functional.l1_loss}

    def train_transform(self, data, model):
        return SeriesTransform(data.size)

    eval_transform = train_transform

    def is_random(self, data):
        return False

    def metric_fn(self, model, extra=()):
        return lambda reconstruction, original: {"error": (reconstruction - original).abs().mean(dim=(1, 2))}

    def code_features(self, data, model):
        return {"codes": datasets.List(datasets.Value("uint8"))}

    def code_settings(self, data, model):
        return {"size": data.size}

    def resolution(self, model):
        return "factor 4"

    def picture(self, rows, model, labels=(), captions=()):
        return np.zeros((len(rows), len(rows[0]), 3), np.uint8)

    def quality_captions(self, reconstruction, original, model):
        return ["near"] * len(original)

    def rate(self, model, bits):
        return bits / 4

    def read_suffixes(self):
        return frozenset((".txt",))

    def read_file(self, file, model):
        series = torch.from_numpy(np.loadtxt(file, dtype=np.float32))
        return nn.functional.pad(series, (0, -len(series) % 4))[None, None], {"length": len(series)}

    def cut(self, signal, size):
        return signal[..., : size["length"]]

    def write_file(self, path, signal, model):
        np.savetxt(path, signal[0, 0].numpy())

    def described(self, size, bits):
        return f"{size['length']} numbers", f"{bits / size['length']} bits a number"

    def parts(self, size, model):
        return 1

    def compared(self, original, decoded, codes, model):
        return self.picture([original, decoded], model)


def write_series(folder, shards):
    folder.mkdir()
    for split, (count,) in shards.items():
        series = np.random.default_rng(0).normal(size=(count, 20)).cumsum(axis=1).astype(np.float32)
        rows = {"series": series.tolist(), "label": list(range(count))}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.fixture
def registered(monkeypatch):
    """The one line that another package adds."""
    monkeypatch.setitem(MODALITIES, "series", SeriesModality())


def test_a_new_modality_does_all_that_the_others_do(registered, tmp_path, capsys):
    data, output = write_series(tmp_path / "data", {"train": [300], "validation": [9]}), tmp_path / "run"
    settings = {
        "output_dir": str(output), "data.name": data, "data.workers": "0", "max_train_steps": "4", "quantizer": VECTOR,
        "lr_warmup_steps": "1", "validation_steps": "2", "checkpointing_steps": "2", "report_to": "[]",
        "codebook.latents_per_code": "128",
    }  # fmt: skip
    arguments = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
    with pytest.warns(UserWarning, match="fitting 8 codes to"):
        trained = train_tokenizer(parse_config(SeriesTrainingConfig, arguments))
    results = json.loads((trained / "results.json").read_text())
    assert results["training"]["series_seen"] == 4 * 8
    assert (results["evaluation"][0]["series"], results["evaluation"][0]["tokens"]) == (9, 9 * 4)
    assert (output / "validation/step-0000004.png").exists()
    fitted = str(tmp_path / "fitted")
    named = ["--dataset", data, "--codebook-size", "4", "--latents-per-code", "128", "--output", fitted]
    with pytest.warns(UserWarning, match="fitting 4 codes to"):
        main(["fit", str(trained), *named])
    assert main(["evaluate", fitted, "--dataset", data, "--save"]) == 0
    assert json.loads(Path(fitted, "results.json").read_text())["evaluation"][0]["series"] == 9
    assert main(["tokenize", fitted, "--dataset", data, "--output", str(tmp_path / "codes"), "--size", "8"]) == 0
    assert "300 series in 1 files" in capsys.readouterr().out
    np.savetxt(tmp_path / "own.txt", np.arange(10))
    assert main(["encode", str(tmp_path / "own.txt"), "--tokenizer", fitted]) == 0
    assert "10 numbers in 3 codes of 4, 0.6 bits a number" in capsys.readouterr().out
    assert main(["decode", str(tmp_path / "own.safetensors")]) == 0
    assert len(np.loadtxt(tmp_path / "own.decoded.txt")) == 10
    assert main(["reconstruct", str(tmp_path / "own.txt"), "--tokenizer", fitted]) == 0
    rows = datasets.load_dataset(str(tmp_path / "codes"), split="train").with_format("torch")
    source = open_series(data, split="train", config=None, revision=None, column=None, streaming=True, other_columns=0)
    (series,) = ItemLoader(ItemStream(source, SeriesTransform(8)), batch_size=300)
    assert torch.equal(rows["codes"][:].long(), load_tokenizer(fitted).tokenize(series))
    assert rows["label"][:].tolist() == list(range(300))


def test_codes_of_a_new_modality_are_generated(registered, tmp_path):
    tokenizer = SeriesTokenizer(VECTOR)
    tokenizer.set_codebook(torch.arange(16.0).reshape(8, 2))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data, output = write_series(tmp_path / "data", {"train": [5]}), str(tmp_path / "codes")
    assert main(["tokenize", str(tmp_path / "tokenizer"), "--dataset", data, "--output", output, "--size", "8"]) == 0
    folder = CodeFolder(output)
    vocabulary, tokenizer = vocabulary_of(folder), load_code_tokenizer(folder)
    assert (vocabulary.grid, len(CodeSequences(folder, vocabulary))) == ((2,), 5)
    model = new_transformer(
        AutoModelForCausalLM,
        {"kind": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        vocabulary,
    )
    vocabulary.write_to(model)
    made = VPAutoregressivePipeline(tokenizer, model)(num_images=3)
    assert [series.shape for series in made.audios] == [(8,)] * 3
    assert made.sampling_rate is None
    batch = CausalBatches(vocabulary)(list(CodeSequences(folder, vocabulary)))
    summary = causal_likelihood(model, [batch], vocabulary).summary(folder.manifest)
    assert summary.keys() == {"tokens", "bits_per_token", "unigram_bits_per_token"}


# Architecture, what writes a data set, and fields of `DataConfig` of each modality.
CASES = {
    "image": (image_runs.ARCHITECTURE, image_runs.write_pictures, {"size": 16, "shortest_side": 20}),
    "audio": (audio_runs.ARCHITECTURE, audio_runs.write_speech, {"segment_s": 0.2}),
    "series": ({}, write_series, {"size": 8}),
}


@pytest.fixture(params=CASES)
def case(request, registered, tmp_path):
    """A modality, a tokenizer with a codebook, and settings that name data."""
    modality = MODALITIES[request.param]
    architecture, write, fields = CASES[request.param]
    name = write(tmp_path / "data", shards={"train": [6], "validation": [5]})
    config = modality.config_class(quantizer=VECTOR)
    config.model.architecture = architecture
    torch.manual_seed(0)
    model = modality.build_model(config).eval()
    data = type(config.data)(name=name, workers=0, shuffle_buffer=3, validation_examples=4, **fields)
    return SimpleNamespace(modality=modality, model=model, config=config, data=data)


def fitted(case):
    latents = torch.cat([case.model.latent_vectors(batch).flatten(0, -2) for batch in batches(case).evaluation()])
    case.model.set_codebook(latents[:: len(latents) // 7][:8])
    return case.model


def batches(case, **settings):
    return Batches(case.modality, case.model, case.data, batch_size=2, **settings)


def test_it_is_found_by_its_model_its_settings_and_its_folder(case, tmp_path):
    assert MODALITIES.keys() == CASES.keys()
    assert modality_of(case.model) is modality_of(case.config) is case.modality
    with pytest.raises(ValueError, match="Linear belongs to no modality; known: AutoencoderVP and ImageTraining"):
        modality_of(nn.Linear(1, 1))
    fitted(case).save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"), device=torch.device("cpu"))
    assert not loaded.training
    assert loaded.fingerprint() == case.model.fingerprint()


def test_batches_are_what_the_model_takes(case):
    given = batches(case)
    given.open()
    batch = next(iter(given.training(0)))
    output = case.model.train()(batch)
    assert output.sample.shape == batch.shape
    assert torch.equal(next(iter(given.training(0))), batch)
    losses = case.modality.losses(case.config, case.model)
    assert losses.keys() == case.config.loss_weights.keys()
    assert all(loss(output.sample, batch).ndim == 0 for loss in losses.values())
    for batch in given.fitting(0, once=True):
        inputs = [batch] if isinstance(batch, torch.Tensor) else batch.values()
        assert case.model.latent_vectors(*inputs).shape[-1] == 2
    shown = given.shown(3)
    assert len(shown) == 3
    near = case.modality.quality_captions(shown, shown, case.model)
    assert len(near) == 3
    picture = case.modality.picture([shown, shown], case.model, ["original", "the same"], [[], near])
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    assert case.modality.rate(case.model, 6.0) == 2 * case.modality.rate(case.model, 3.0) > 0


def test_evaluation_gives_each_rank_its_part(case):
    whole = [item for batch in batches(case).evaluation() for item in batch]
    assert len(whole) == 5
    for limit, count in ((4, 4), (9, 5), (1, 1)):
        assert sum(map(len, batches(case).evaluation(limit))) == count
    assert sum(len(batch) for rank in (0, 1) for batch in batches(case, rank=rank, world_size=2).evaluation(4)) == 4
    case.data.validation_split = None
    assert not batches(case).validates
    batches(case).open()


def test_metrics(case):
    with pytest.raises(CodebookNotFittedError):
        case.modality.evaluate(case.model, batches(case).evaluation())
    fitted(case)
    quality = case.modality.evaluate(case.model, batches(case).evaluation())
    assert {*case.modality.headline_metrics, "code_usage"} <= quality.metrics.keys()
    unquantized = case.modality.unquantized_metrics or case.modality.headline_metrics
    assert {f"{name}_unquantized" for name in unquantized} <= quality.metrics.keys()
    assert quality.items == 5
    with pytest.raises(ValueError, match="--sharpness has no meaning for"):
        case.modality.evaluate(case.model, [], extra=["sharpness"])


def test_codes_in_files_are_those_of_each_item_alone(case):
    model, transform = fitted(case), case.modality.eval_transform(case.data, case.model)
    source = case.modality.open(case.data.validation, transform)
    items = [item["item"] for item in ItemStream(source, transform)]
    rows = chain(*case.modality.code_rows([items[:3], items[3:]], transform, model, batch_size=2))
    features = datasets.Features(case.modality.code_features(case.data, model))
    stored = datasets.Dataset.from_list(list(rows), features=features).with_format("torch")
    for item, row in zip(items, stored, strict=True):
        alone = transform.model_input(item[None])
        codes = model.quantize.encode(model.latent_vectors(alone))[0]
        assert torch.equal(row["codes"].long(), codes)
    assert json.loads(json.dumps(case.modality.code_settings(case.data, model)))
    assert case.modality.resolution(model)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"some of .* are NaN or infinite"):
        next(case.modality.code_rows([items], transform, model, batch_size=8))


@pytest.mark.parametrize(("name", "option"), [("image", "downmix"), ("audio", "size"), ("series", "shortest_side")])
def test_an_option_of_another_modality_is_refused(name, option, registered, tmp_path):
    modality = MODALITIES[name]
    model = modality.new_model(modality.config_class(quantizer=VECTOR))
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} has no meaning for {type(model).__name__}"):
        modality.data_config(model, **{option: 1})
    given = {"shortest_side": None, "resample": False} | ({"size": 12} if name == "series" else {})
    assert modality.data_config(model, **given)
