"""Saving, loading and pushing of all tokenizers; diffusers and transformers write and read the weights."""

import logging
import os
import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError

from vpvae_hf.files import staged_folder
from vpvae_hf.hub import HubEntry, explain_contents, hub_errors, push_folder
from vpvae_hf.quantizers import build_quantizer
from vpvae_hf.settings import refuse_unknown_arguments

_log = logging.getLogger(__name__)

_PLACE_ARGUMENTS = ("subfolder", "variant", "use_safetensors", "revision", "token", "local_files_only")
_PUSH_ARGUMENTS = (
    "repo_id",
    *(name for name in signature(push_folder).parameters if name not in ("folder", "repo_id")),
)


class Persistence:
    """The folder of a tokenizer: weights with codebook, config and preprocessor. Part of `Tokenizer`."""

    hub_entry: ClassVar[HubEntry]
    _weights_file: ClassVar[str]  # without its ending
    _loading: ClassVar[dict[str, Any]] = {}  # arguments that the library's `from_pretrained` always gets

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        # diffusers pipelines look for these names to see that the arguments may be given.
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Save weights with codebook, config and preprocessor; arguments as in diffusers or transformers.

        The files are moved into place once all of them are written, so a save that fails leaves the folder as it was.

        With `push_to_hub` the folder is then pushed by `vpvae_hf.hub.push_folder`, whose arguments can also be given
        here; `repo_id` is by default the folder's name.
        """
        pushing = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if name in kwargs}
        known = (*signature(super().save_pretrained).parameters, *_PUSH_ARGUMENTS)
        refuse_unknown_arguments(kwargs, "save_pretrained", known)
        if max_shard_size is not None:
            kwargs["max_shard_size"] = max_shard_size
        if not safe_serialization:
            kwargs["safe_serialization"] = False
        self._check_saved()
        self._sync_config()
        # Shards of an earlier save, and their index: loading would prefer them to a single file.
        dot_variant = "" if variant is None else rf"\.{re.escape(variant)}"
        name, shard, ending = self._weights_file, r"-\d{5}-of-\d{5}", r"\.(safetensors|bin)"
        obsolete = rf"{name}{dot_variant}({shard})?{ending}|{name}{ending}\.index{dot_variant}\.json"
        with staged_folder(save_directory, obsolete) as folder:
            super().save_pretrained(folder, is_main_process=is_main_process, variant=variant, **kwargs)
            if is_main_process:
                self.preprocessor().save_pretrained(folder)
        if push_to_hub and is_main_process:
            repo_id = pushing.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            push_folder(save_directory, repo_id, **pushing)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        max_shard_size: int | str | None = None,
        tags: Sequence[str] | str = (),
        **kwargs,
    ) -> str:
        """Push the model with a model card; arguments as in diffusers and transformers.

        Arguments of `save_pretrained` are passed to it, and all others to `vpvae_hf.hub.push_folder`.
        """
        refuse_unknown_arguments(kwargs, "push_to_hub", (*signature(self.push_to_hub).parameters, *_PUSH_ARGUMENTS))
        pushing = {"commit_message": commit_message, "private": private, "token": token, "create_pr": create_pr}
        # transformers keeps tags in its models.
        tags = [*(getattr(self, "model_tags", None) or ()), *([tags] if isinstance(tags, str) else tags or ())]
        with tempfile.TemporaryDirectory() as folder:
            saving = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
            self.save_pretrained(folder, **saving)
            return push_folder(folder, repo_id, subfolder=subfolder, tags=tags, **pushing, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs) -> Self:
        """Load a folder or a hub id; arguments as in diffusers or transformers.

        If the tokenizer has several codebooks, `codebook_size` selects the one of that size.

        Raises:
            ValueError: a weight or the codebook is missing, misshapen, damaged or not usable; there is no codebook of
                that size; or config fields are unknown.
            FileNotFoundError: there is no such folder, repository, revision or file.
            PermissionError: the hub refuses the token.
            ConnectionError: the hub cannot be reached or is down, and the cache does not have the model.
        """
        name, with_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        codebook_size = kwargs.pop("codebook_size", None)
        for argument in ("dtype", "torch_dtype"):
            # transformers also takes "auto", the dtype of the files.
            if argument in kwargs and (kwargs[argument] != "auto" or cls.hub_entry.library != "transformers"):
                kwargs[argument] = checked_dtype(kwargs[argument])
        # It only changes how weights are read, and diffusers keeps the quantizer in float32 only if it reads them in
        # its usual way.
        kwargs.pop("low_cpu_mem_usage", None)
        if kwargs.get("subfolder") and os.path.isdir(name):  # diffusers would prefer a tokenizer in the folder itself
            name = os.path.join(name, kwargs.pop("subfolder"))
        try:
            with hub_errors(name, doing="load", revision=kwargs.get("revision")):
                model, info = super().from_pretrained(name, *args, **kwargs | cls._loading, output_loading_info=True)
            shapes = sorted(f"{key} is {tuple(saved)}, not {tuple(own)}" for key, saved, own in info["mismatched_keys"])
            if shapes and not kwargs.get("ignore_mismatched_sizes"):
                more = f", and {len(shapes) - 3} more" if len(shapes) > 3 else ""
                raise _mismatch(name, ", ".join(shapes[:3]) + more)
            if shapes:
                model._make_mismatched([key for key, *_ in info["mismatched_keys"]])
            model._check_loaded(name, info["missing_keys"])
        except (ConnectionError, PermissionError):
            raise
        # Any exception, since the libraries fail in many ways if the folder holds no tokenizer of this class.
        except Exception as error:
            given = {key: kwargs.get(key) for key in _PLACE_ARGUMENTS}
            explained = explain_contents(name, cls.__name__, cls.hub_entry, weights_file=cls._weights_file, **given)
            explained = explained or _explained(name, error)
            if explained is None:
                raise
            raise explained from error
        if codebook_size is not None:
            model.select_codebook(codebook_size)
        return (model, info) if with_info else model

    @abstractmethod
    def preprocessor(self):
        """What turns images or waveforms into the model's inputs; it is saved along with the model."""

    def _check_saved(self) -> None:
        """Record whether the model has a codebook: one made from a fitted model's config alone has none.

        Raises a ValueError if the model could not be loaded again: its weights have other names or are offloaded.
        """
        self._check_present()
        if any(name.endswith("_orig") or ".parametrizations." in name for name, _ in self.named_parameters()):
            raise ValueError(
                "the model has weights that torch.nn.utils computes anew for each pass, which from_pretrained cannot "
                "load; first make them permanent with prune.remove or parametrize.remove_parametrizations"
            )
        # transformers itself saves the adapters alone, as a folder that its `from_pretrained` reads.
        saved_alone = self.hub_entry.library == "transformers" and getattr(self, "_hf_peft_config_loaded", False)
        if not saved_alone and any(".base_layer." in name for name, _ in self.named_parameters()):
            raise ValueError(
                "the model has adapters (peft), whose layers from_pretrained cannot load; save them alone with "
                "save_lora_adapter (or PeftModel.save_pretrained), or first put them into the weights with fuse_lora "
                "and unload_lora (or PeftModel.merge_and_unload)"
            )
        quantizer = self.quantize
        if not all(each.any() for each in quantizer.fitted_tensors):
            _log.warning(
                "the settings say that the %s should hold fitted values, but there are only zeros, as in a model made "
                "from another model's config, e.g. by diffusers' EMAModel; it is saved as not fitted. To have "
                "codes, load these weights into the fitted model, or call vpvae_hf.fit_codebook",
                quantizer.config.fits,
            )
            quantizer.drop_fit()
        elif quantizer.needs_fitting and not quantizer.config.fitted and quantizer.codebook.any():
            self.set_codebook(quantizer.codebook, quantizer.metric)  # it came with copied weights

    @torch.no_grad()
    def _make_mismatched(self, keys: Iterable[str]) -> None:
        """Initialize weights that were not read, since their shape differs. A codebook among them becomes unfitted."""
        if any(key.startswith("quantize.") for key in keys):
            self.quantize = build_quantizer(self.quantize.config.without_fit()).train(self.training)
            self._sync_config()
        for module in self.modules():
            weights = dict(module.named_parameters(recurse=False))
            read = {name: weight.clone() for name, weight in weights.items() if not weight.is_meta}
            if len(read) < len(weights):  # diffusers leaves them on the meta device
                module.to_empty(device="cpu", recurse=False).reset_parameters()
                for name, weight in read.items():
                    getattr(module, name).copy_(weight)

    def _check_loaded(self, name: str | os.PathLike, missing_keys: Iterable[str]) -> None:
        """Raise a ValueError for a model loaded from `name` that lacks weights, or the codebook it should have."""
        if missing_keys:
            lacking = sorted(missing_keys)
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise ValueError(
                f"{name}: the weights lack {', '.join(lacking[:3])}{more}; they were saved by another "
                "architecture or cut short, save the model again with save_pretrained"
            )
        if not all(torch.isfinite(each).all() and each.any() for each in self.quantize.fitted_tensors):
            raise ValueError(
                f"{name}: the config says that the {self.quantize.config.fits} should hold fitted values, but there "
                "are only zeros, or NaN or infinite values; run vpvae_hf.fit_codebook again and save"
            )


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype to pass to a library, from a dtype or its name, such as "float16"; a ValueError for others."""
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(named, torch.dtype) and named.is_floating_point):
        return named
    raise ValueError(
        f"torch_dtype must be a floating point dtype or its name, such as torch.float16 or 'float16', got {dtype!r}"
    )


def _explained(name: str | os.PathLike, error: Exception) -> ValueError | None:
    """The error for weights that a library could not load; None for other errors."""
    # diffusers raises a ValueError for misshapen weights, and hides a SafetensorError behind an OSError.
    if isinstance(error, ValueError) and "expected shape" in str(error):
        return _mismatch(name, str(error.args[0]).split(". If you want")[0])
    while error is not None and not isinstance(error, SafetensorError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return ValueError(
        f"{name}: a file of weights is damaged or cut short ({error}); download it or save the model again"
    )


def _mismatch(name: str | os.PathLike, what: str) -> ValueError:
    return ValueError(
        f"{name}: weights and config do not belong together ({what}); save the model again with save_pretrained, or "
        "restore the config.json it was saved with"
    )
