"""Arguments of functions that take any tokenizer: models in wrappers, and batches as loaders give them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy import ndarray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from vpvae_hf.tensors import as_tensor, named, shapes_of

from .tokenizer import Tokenizer

INPUT_NAMES = ("pixel_values", "input_values")
_PADDING = "padding_mask"


def unwrapped(model: nn.Module) -> Tokenizer:
    """The tokenizer in a wrapper of a library that compiles it, adapts it or runs it in parallel.

    It shares its weights with the wrapper. A model that does not hold exactly one tokenizer raises a TypeError.
    """
    if isinstance(model, Tokenizer):
        return model
    modules = model.modules() if isinstance(model, nn.Module) else []
    found = [module for module in modules if isinstance(module, Tokenizer)]
    if len(found) != 1:
        holds = f", which holds {len(found)} tokenizers" if found else ""
        raise TypeError(
            f"model must be a tokenizer, such as AutoencoderVP or VPCodecModel, got {type(model).__name__}{holds}"
        )
    return found[0]


def check_batches(batches: Any) -> Iterable:
    """The batches; a TypeError for a single batch, and for what gives single items or cannot be iterated over."""
    kind = type(batches).__name__
    if isinstance(batches, Tensor | ndarray):
        raise TypeError(
            f"batches must be an iterable of batches, got one {kind} of shape {tuple(batches.shape)}; give parts of "
            "it, such as torch.as_tensor(x).split(64), or [x] if it is one batch"
        )
    if isinstance(batches, Mapping):
        raise TypeError(f"batches must be an iterable of batches, got one {kind}; give [batch] if it is one batch")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise TypeError(
            f"batches must be an iterable of batches, got {kind}, which gives single items; give "
            "torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, such as a DataLoader, got {kind}")
    return batches


def batch_inputs(model: Tokenizer, batch: Any) -> tuple[Tensor, Tensor | None]:
    """The inputs of a batch, and the padding mask if it holds one, on the model's device.

    Args:
        batch: what the model takes, or a mapping that holds it as "pixel_values" or "input_values" and may hold a
            "padding_mask"; or a tuple or list of inputs and labels, such as a DataLoader gives.

    Raises:
        TypeError, ValueError: the batch is something else; the message names types and shapes, never values.
    """
    mask = None
    if isinstance(batch, Mapping):
        name = next((name for name in INPUT_NAMES if name in batch), None)
        if name is None:
            raise ValueError(f"a batch must hold one of {', '.join(INPUT_NAMES)}; it holds {named(list(batch))}")
        batch, mask = batch[name], batch.get(_PADDING)
    elif isinstance(batch, list | tuple):
        batch = _inputs_among(batch, model._input_dims)
    device = next(model.parameters()).device
    inputs = model.as_inputs(batch).to(device)
    return inputs, None if mask is None else as_tensor(mask, _PADDING).to(device)


def _inputs_among(parts: Sequence, dims: int) -> Any:
    """The only part that can be a batch of `dims` dimensions, or all parts if they are the items of a batch."""
    whole = [part for part in parts if getattr(part, "ndim", 0) >= dims]
    if len(whole) > 1:
        raise ValueError(
            f"a batch must hold inputs once, got {len(whole)} arrays of shapes {shapes_of(whole)}; give the inputs "
            f"alone, or a mapping that holds them as {' or '.join(INPUT_NAMES)}"
        )
    if whole:
        return whole[0]
    lists = [part for part in parts if isinstance(part, list | tuple) and part and _is_signal(part[0])]
    return lists[0] if len(lists) == 1 else parts


def _is_signal(value: Any) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) > 0
