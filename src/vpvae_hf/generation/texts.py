"""Texts that condition codes: the tokenizer of their words, and their ids.

Shapes: B texts, P ids of each.
"""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vpvae_hf.data import CodeFolder
from vpvae_hf.files import hint_at_local_path, local_path
from vpvae_hf.hub import hub_errors
from vpvae_hf.settings import require

_PAD = "<pad>"
_AT_ONCE = 1000  # texts


def text_tokenizer_of(
    folder: CodeFolder, name: str | None = None, *, size: int = 4096
) -> PreTrainedTokenizerBase | None:
    """The tokenizer for the texts of a folder's condition column; None if the column holds no texts.

    Args:
        name: folder or hub id of a saved tokenizer; None makes one from the folder's texts.
        size: the largest number of ids of a tokenizer that is made.

    Raises:
        ValueError: a name is given but the column holds no texts; or the named place holds no tokenizer, or one without
            a token for padding.
        FileNotFoundError, PermissionError, ConnectionError: it cannot be loaded.
    """
    if not folder.is_text:
        valid = "left out: data.condition_column names no column of texts"
        require(name is None, "data.text_tokenizer", name, valid)
        return None
    return new_text_tokenizer(folder.texts(), size) if name is None else load_text_tokenizer(name)


def new_text_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the words, and parts of words, that occur most often in some texts.

    It joins pairs of bytes (BPE), so it can encode every text, and it ignores case. The same texts give the same
    tokenizer.

    Args:
        size: the largest number of ids, at least 257: one per byte, and one for padding.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    require(size > len(alphabet), "text_vocabulary", size, f"at least {len(alphabet) + 1}, one for each byte")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"special_tokens": [_PAD], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, **settings))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD)


def load_text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A saved tokenizer of texts; errors are those of `text_tokenizer_of`."""
    folder = local_path(name)
    try:
        with hint_at_local_path(name), hub_errors(name, doing="load"):
            tokenizer = AutoTokenizer.from_pretrained(name if folder is None else folder)
    except (ConnectionError, FileNotFoundError, PermissionError):
        raise
    # Any exception: a folder without a tokenizer makes transformers fail in many ways.
    except Exception as error:
        raise ValueError(
            f"{name} holds no tokenizer of texts; name a folder or a hub id with tokenizer.json"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"{name} has neither a pad nor an end token to fill up shorter texts with; name another")
    return tokenizer


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Tensor:
    """Ids [B, P] int64 of texts, filled up on the right, and cut to `length`."""
    how = {"padding": "max_length", "truncation": True, "max_length": length, "padding_side": "right"}
    return torch.tensor(tokenizer(list(texts), **how).input_ids).reshape(len(texts), length)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Tensor:
    """`text_ids` of texts to generate from; a ValueError for a blank text and for one that would be cut."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {text!r}; give either texts or ids [B, {length}], not both")
        if not text.strip():
            raise ValueError(f"a text must not be blank, got {text!r}; leave all texts out to generate without them")
        if (needed := len(tokenizer(text).input_ids)) > length:
            raise ValueError(f"the model knows texts of at most {length} ids, {text!r} has {needed}; shorten it")
    return text_ids(tokenizer, texts, length)


def longest_text(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    """The number of ids of the longest text; a ValueError if there are no texts."""
    blocks = (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE))
    if not (longest := max((len(ids) for block in blocks for ids in tokenizer(block).input_ids), default=0)):
        raise ValueError("the condition column holds no text; name another")
    return longest
