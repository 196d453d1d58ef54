"""Codes that runs of generators are trained on."""

import datasets
import pytest
from generation_runs import audio_tokenizer, image_tokenizer, tokenize, with_column, write_clips, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def image_codes(pictures, tmp_path_factory):
    """Codes of pictures of 4 x 4 codes, labelled 0..59."""
    folder = tmp_path_factory.mktemp("images")
    return tokenize(image_tokenizer(), pictures, folder, "--size", "8", "--shortest-side", "8")


@pytest.fixture(scope="module")
def audio_codes(tmp_path_factory):
    sounds = write_clips(tmp_path_factory.mktemp("sounds"))
    return tokenize(audio_tokenizer(), sounds, tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def captioned(image_codes, tmp_path_factory):
    """The same with captions, of which every tenth is missing."""
    captions = ["a picture of a dog", "one cat", "a very long text about a tulip in a garden"]
    folder = tmp_path_factory.mktemp("images_captioned")
    feature = datasets.Value("string")
    return with_column(
        image_codes, folder, "caption", feature, lambda label: None if label % 10 == 9 else captions[label % 3]
    )


@pytest.fixture
def codes(modality, image_codes, audio_codes):
    return image_codes if modality == "images" else audio_codes
