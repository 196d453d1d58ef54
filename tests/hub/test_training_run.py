"""A training run that ends on the Hub, and one that starts there."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from image_runs import configured, settings, write_pictures

from vpvae_hf import AutoencoderVP
from vpvae_hf.training.run import train_tokenizer


def test_push_at_the_end_and_go_on_from_there(hub, tmp_path):
    data = write_pictures(tmp_path / "pictures", shards={"train": [20], "validation": [6]})
    there = {"push_to_hub": True, "hub_model_id": "alice/eyes", "hub_private": True}
    folder = train_tokenizer(configured(settings(data, tmp_path / "first", max_train_steps=4, **there)))
    pushed, saved = AutoencoderVP.from_pretrained("alice/eyes"), AutoencoderVP.from_pretrained(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(pushed.eval().tokenize(images), saved.eval().tokenize(images))
    card = ModelCard.load("alice/eyes")
    psnr = next(result for result in card.data.eval_results if result.metric_type == "psnr")
    results = json.loads((folder / "results.json").read_text())
    assert psnr.metric_value == pytest.approx(results["evaluation"][0]["metrics"]["psnr"], abs=0.01)
    second = settings(data, tmp_path / "second", max_train_steps=2, model={"pretrained": "alice/eyes"}, quantizer={})
    results = json.loads((train_tokenizer(configured(second)) / "results.json").read_text())
    assert results["training"]["base_model"] == "alice/eyes"
