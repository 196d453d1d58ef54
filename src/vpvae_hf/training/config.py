"""Settings of a run from YAML files and the command line: `--config FILE --group.key value --switch`."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, get_args

from vpvae_hf.modalities.config import LoopConfig, RunConfig, option
from vpvae_hf.quantizers import NoCodesError
from vpvae_hf.settings import did_you_mean, installed_with

__all__ = [
    "LoopConfig",
    "RunConfig",
    "describe",
    "log_warnings",
    "option",
    "parse_config",
    "require_settings",
    "run_recipe",
    "with_bases",
]

Config = TypeVar("Config")

_NULLS = ("null", "~", "")


def parse_config(config_class: type[Config], arguments: Sequence[str]) -> Config:
    """Fill a settings dataclass: its defaults are overridden by each --config file in order, then by other arguments.

    A YAML file may name another file as its `base`, by a path relative to itself; its settings then override those of
    the base. A group with a "kind", such as a quantizer's settings, replaces a group of another kind, and overrides
    single settings of a group of the same kind.

    Args:
        arguments: `--config FILE`, any number of times; `--key value` or `--key=value`, with values in YAML except for
            text settings, which are taken literally; `--switch` for true. A key within a group is written group.key.

    Raises:
        ValueError: a key is unknown (the message names the nearest valid one), or a value has the wrong type or is out
            of range.
        FileNotFoundError: a file does not exist.
    """
    with installed_with("'vpvae_hf[train]'"):
        from omegaconf import OmegaConf
    config = OmegaConf.structured(config_class)
    files, settings = _split(arguments)
    kinds = dict(_types(config_class, ""))
    for file in files:
        for path, content in with_bases(Path(file)):
            config = _merged(config, content, str(path))
    for key, value in settings:
        if value is None:
            if key not in kinds:
                raise ValueError(_unknown(config, key, "--"))
            if kinds[key] not in (bool, bool | None):
                raise ValueError(f"--{key} needs a value")
            value = "true"
        if kinds.get(key) in (str, str | None) and value not in _NULLS and value[0] not in "\"'":
            value = json.dumps(value)
        config = _merged(config, OmegaConf.from_dotlist([f"{key}={value}"]), "the command line")
    return OmegaConf.to_object(config)


def require_settings(config: RunConfig, *keys: str) -> None:
    """Raise a ValueError for the first of some settings, named as on the command line, that has no value."""
    for key in keys:
        if not attrgetter(key)(config):
            raise ValueError(f"{key} is not set; add --{key} ...")


def run_recipe(
    config_class: type[Config], train: Callable[[Config], Any], description: str, arguments: Sequence[str]
) -> int:
    """The command line of a recipe: train as the arguments say, and print each error that a user can fix in one line.

    Args:
        train: a function that is called with the settings, e.g. `train_tokenizer`.
        description: the first line of the --help text.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interruption.
    """
    log_warnings()
    if "--help" in arguments or "-h" in arguments:
        print(f"{description}\nSettings: any number of --config FILE.yaml, and\n{describe(config_class)}")
        return 0
    try:
        train(parse_config(config_class, arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError, NoCodesError) as error:
        logging.getLogger("train").error(error)
        return 1
    return 0


def log_warnings() -> None:
    """Print the package's warnings on stderr."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")


def describe(config_class: type) -> str:
    """Every key with its default and meaning, one per line."""
    found = _fields(config_class, "")
    return "\n".join(f"  --{key:<32} {meaning} (default: {default})" for key, default, meaning in found)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Config files, and pairs of key and value; the value is None for a key without one."""
    files, settings = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; settings are given as --key value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else None
        if key == "config":
            if not value:
                raise ValueError("--config needs a file")
            files.append(value)
        else:
            settings.append((key, value))
    return files, settings


def with_bases(path: Path) -> Iterator[tuple[Path, Any]]:
    """The settings of a file and of its bases, each with its path, from the lowest base up to the file itself."""
    from omegaconf import OmegaConf

    seen: list[tuple[Path, Any]] = []
    while path is not None:
        if path.resolve() in [other.resolve() for other, _ in seen]:
            raise ValueError(f"{path} is its own base, through {', '.join(str(other) for other, _ in seen)}")
        if not path.is_file():
            named = f", named as base by {seen[-1][0]}" if seen else ""
            raise FileNotFoundError(f"no such file: {path}{named}")
        content = OmegaConf.load(path)
        if not OmegaConf.is_dict(content):
            raise ValueError(f"{path} holds no settings; it must be a mapping of names to values")
        base = content.pop("base", None)
        seen.append((path, content))
        path = None if base is None else path.parent / base
    return reversed(seen)


def _merged(config: Any, content: Any, where: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    for key, kind in _types(OmegaConf.get_type(config), ""):
        # YAML reads the name "no" as false.
        if any("no" in get_args(part) for part in (kind, *get_args(kind))) and OmegaConf.select(content, key) is False:
            OmegaConf.update(content, key, "no")
    try:
        for key, value in content.items():
            # The settings of one kind have no meaning for another.
            both_have_kinds = OmegaConf.is_dict(value) and "kind" in value and key in config and "kind" in config[key]
            if both_have_kinds and value["kind"] != config[key]["kind"]:
                config[key] = {}
        return OmegaConf.merge(config, content)
    except ConfigKeyError as error:
        raise ValueError(_unknown(config, error.full_key, f"{where}: ")) from error
    except TypeError as error:  # a mapping in place of a list, or the other way round
        raise ValueError(f"{where}: {', '.join(content)}: {error}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {error.full_key or ''}: {str(error).splitlines()[0]}") from error


def _unknown(config: Any, key: str, where: str) -> str:
    from omegaconf import OmegaConf

    valid = [name for name, _, _ in _fields(OmegaConf.get_type(config), "")]
    # A setting of the same name in another group is a better guess than a similar name.
    alike = [name for name in valid if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"{where}{key} is no setting; {did_you_mean(alike[0] if alike else key, valid, cutoff=0.5)}"


def _types(config_class: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(field.type):
            yield from _types(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _fields(config_class: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for field in dataclasses.fields(config_class):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            yield from _fields(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, default, field.metadata["help"]
