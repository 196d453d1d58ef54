"""Settings from YAML files and the command line: `--config FILE --group.key value --switch`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vpvae_hf.settings import did_you_mean

Config = TypeVar("Config")


def parse_config(config_class: type[Config], arguments: Sequence[str]) -> Config:
    """Settings of a dataclass: its defaults, then each --config file in order, then the other arguments.

    A YAML file may name another beside it, which it changes, as `base`. Settings with a "kind", a quantizer's, take the
    place of those of another kind, and change those of the same kind.

    Args:
        arguments: `--config FILE`, any number of times; `--key value` or `--key=value`, where a key within a group has
            a dot; `--switch` alone for true. Values are YAML.

    Raises:
        ImportError: omegaconf is not installed.
        ValueError: an unknown key, with the nearest valid one, or a value of another type or out of its range.
        FileNotFoundError: no such file.
    """
    try:
        from omegaconf import OmegaConf
    except ImportError as error:
        raise ImportError("omegaconf is missing; install it with: pip install 'vpvae_hf[train]'") from error
    config = OmegaConf.structured(config_class)
    files, settings = _split(arguments)
    for file in files:
        for path, content in with_bases(Path(file)):
            config = _merged(config, content, str(path))
    for key, value in settings:
        if value is None:
            current = _select(config, key)
            if not isinstance(current, bool):
                raise ValueError(f"--{key} needs a value" if current is not _UNKNOWN else _unknown(config, key, "--"))
            value = "true"
        config = _merged(config, OmegaConf.from_dotlist([f"{key}={value}"]), "the command line")
    return OmegaConf.to_object(config)


def describe(config_class: type) -> str:
    """Every key with its default and meaning, a line each."""
    return "\n".join(
        f"  --{key:<32} {meaning} (default: {default})" for key, default, meaning in _fields(config_class, "")
    )


_UNKNOWN = object()


def _split(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Files, and pairs of key and value; None for a key without a value."""
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
    """The settings of a file's bases, the lowest first, and its own, each with its path.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no mapping in it, or a file that is its own base.
    """
    from omegaconf import OmegaConf

    seen: list[tuple[Path, Any]] = []
    while path is not None:
        if path.resolve() in [other.resolve() for other, _ in seen]:
            raise ValueError(f"{path} is its own base, by way of {', '.join(str(other) for other, _ in seen)}")
        if not path.is_file():
            named = f", named as base by {seen[-1][0]}" if seen else ""
            raise FileNotFoundError(f"no such file: {path}{named}")
        content = OmegaConf.load(path)
        if not OmegaConf.is_dict(content):
            raise ValueError(f"{path} holds no settings, which are a mapping")
        base = content.pop("base", None)
        seen.append((path, content))
        path = None if base is None else path.parent / base
    return reversed(seen)


def _merged(config: Any, content: Any, where: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    try:
        for key, value in content.items():
            # Settings of another kind mean nothing to this one.
            both_have_kinds = OmegaConf.is_dict(value) and "kind" in value and key in config and "kind" in config[key]
            if both_have_kinds and value["kind"] != config[key]["kind"]:
                config[key] = {}
        return OmegaConf.merge(config, content)
    except ConfigKeyError as error:
        raise ValueError(_unknown(config, error.full_key, f"{where}: ")) from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {error.full_key or ''}: {str(error).splitlines()[0]}") from error


def _unknown(config: Any, key: str, where: str) -> str:
    valid = [name for name, _, _ in _fields(type(_object(config)), "")]
    # The same name in another group is nearer than a like one.
    alike = [name for name in valid if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"{where}{key} is no setting; {did_you_mean(alike[0] if alike else key, valid, cutoff=0.5)}"


def _object(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.get_type(config)()


def _select(config: Any, key: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError

    try:
        return OmegaConf.select(config, key, default=_UNKNOWN)
    except ConfigKeyError:
        return _UNKNOWN


def _fields(config_class: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    for field in dataclasses.fields(config_class):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            yield from _fields(type(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, default, field.metadata["help"]
