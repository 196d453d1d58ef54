"""The transformer of a run over codes: made of settings or taken from elsewhere, and seen to read the right way."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from vpvae_hf.generation import CodeVocabulary

from .generator_config import AutoregressiveConfig, GeneratorConfig

# What decides the ids and the number of positions of a new model, whatever its type calls the latter.
_POSITIONS = ("n_positions", "max_position_embeddings")
_TEXT_IDS = ("cls_token_id", "sep_token_id")


def transformer_for(config: GeneratorConfig, vocabulary: CodeVocabulary) -> PreTrainedModel:
    """The model that is trained on: one of its settings, or a pretrained one that takes the vocabulary's ids.

    Raises:
        ValueError: settings that transformers has not, or that do not fit the vocabulary; a model that reads what it is
            to predict, or one way only where it should read both.
    """
    causal = isinstance(config, AutoregressiveConfig)
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    if config.pretrained is not None:
        model = kind.from_pretrained(config.pretrained)
        vocabulary.check_start(model)
        model.resize_token_embeddings(max(vocabulary.size, model.get_input_embeddings().num_embeddings))
    else:
        model = _new_model(kind, dict(config.transformer), vocabulary)
    vocabulary.write_to(model)
    _check_direction(model, vocabulary, causal=causal)
    return model


def _new_model(kind, settings: dict[str, Any], vocabulary: CodeVocabulary) -> PreTrainedModel:
    name = settings.pop("kind")
    try:
        defaults = AutoConfig.for_model(name)
    except ValueError as error:
        raise ValueError(f"transformer: transformers has no kind {name!r}") from error
    for field in settings:
        if not hasattr(defaults, field):
            raise ValueError(f"transformer.{field} is no argument of {type(defaults).__name__}")
    special = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}
    # Some models have more special ids, whose defaults are ids of texts.
    special |= {field: None for field in _TEXT_IDS if hasattr(defaults, field)}
    shape = {"vocab_size": vocabulary.size}
    positions = next((field for field in _POSITIONS if hasattr(defaults, field)), None)
    if positions is not None:
        shape[positions] = vocabulary.length + 3
    try:
        return kind.from_config(AutoConfig.for_model(name, **shape | special | settings))
    # Whatever is raised: each kind has its own way to find that its arguments, or the ids of codes, do not fit.
    except Exception as error:
        raise ValueError(f"a transformer of kind {name!r} cannot be made with {shape | settings}: {error}") from error


@torch.no_grad()
def _check_direction(model: PreTrainedModel, vocabulary: CodeVocabulary, *, causal: bool) -> None:
    """See that a causal model does not read what it is to predict, and that another reads both ways."""
    ids = torch.full((2, 4), vocabulary.first_code)
    ids[1, -1] = vocabulary.mask
    was_training = model.training
    first, second = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    model.train(was_training)
    if causal and not torch.allclose(first, second, atol=1e-4):
        raise ValueError(
            f"a {type(model).__name__} of these settings reads codes that it is to predict; name a causal kind, such "
            "as llama, or set is_decoder: true where the kind has it"
        )
    if not causal and torch.equal(first, second):
        raise ValueError(
            f"a {type(model).__name__} reads one way only; name a kind that reads both, such as modernbert"
        )
