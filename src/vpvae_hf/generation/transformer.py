"""Makes models of the library transformers for the ids of a vocabulary, and checks them."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from .vocabulary import CodeVocabulary


def new_transformer(auto_class: type, settings: dict[str, Any], vocabulary: CodeVocabulary) -> PreTrainedModel:
    """A new transformer with as many ids and positions as the vocabulary needs.

    Args:
        auto_class: AutoModelForCausalLM or AutoModelForMaskedLM.
        settings: the model type as "kind", such as llama, and arguments of its config.

    Raises:
        ValueError: transformers has no such kind or argument, or they do not fit the vocabulary.
    """
    arguments = dict(settings)
    kind = arguments.pop("kind")
    try:
        defaults = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ValueError(f"transformer: transformers has no kind {kind!r}") from error
    for field in arguments:
        if not hasattr(defaults, field):
            raise ValueError(f"transformer.{field} is no argument of {type(defaults).__name__}")
    special = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}
    # Some models have these special ids; their defaults are ids of texts.
    special |= {field: None for field in ("cls_token_id", "sep_token_id") if hasattr(defaults, field)}
    shape = {"vocab_size": vocabulary.size}
    # Model types name their number of positions differently.
    positions = next((name for name in ("n_positions", "max_position_embeddings") if hasattr(defaults, name)), None)
    if positions is not None:
        shape[positions] = vocabulary.positions
    try:
        return auto_class.from_config(AutoConfig.for_model(kind, **shape | special | arguments))
    # Any exception: each kind reports in its own way that its arguments, or the ids of codes, do not fit.
    except Exception as error:
        raise ValueError(f"a transformer of kind {kind!r} cannot be made with {shape | arguments}: {error}") from error


@torch.no_grad()
def check_direction(model: PreTrainedModel, vocabulary: CodeVocabulary, *, causal: bool) -> None:
    """Raise a ValueError if a causal model reads the codes that it predicts, or a masked one reads only backwards."""
    ids = torch.full((2, 4), vocabulary.first_code)
    ids[1, -1] = vocabulary.mask
    was_training = model.training
    first, second = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    model.train(was_training)
    if causal and not torch.allclose(first, second, atol=1e-4):
        raise ValueError(
            f"a {type(model).__name__} of these settings reads codes that it must predict; name a causal kind, such "
            "as llama, or set is_decoder: true if the kind has it"
        )
    if not causal and torch.equal(first, second):
        raise ValueError(
            f"a {type(model).__name__} reads one way only; name a kind that reads both, such as modernbert"
        )
