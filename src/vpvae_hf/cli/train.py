"""`vpvae train`: train a tokenizer with a recipe, given by name, and the settings that `recipes/*/train.py` take."""

import argparse
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from vpvae_hf.modalities import MODALITIES
from vpvae_hf.settings import did_you_mean, require_name
from vpvae_hf.training.config import describe, log_warnings, parse_config
from vpvae_hf.training.run import train_tokenizer


def run(options: argparse.Namespace) -> None:
    """Train, or print the settings."""
    require_name("modality", options.modality, MODALITIES)
    config_class = MODALITIES[options.modality].config_class
    recipes = recipes_of(options.modality)
    if {"--help", "-h"} & {*options.settings}:
        print(f"vpvae train {options.modality} --config NAME ... --KEY VALUE ...\n")
        print(f"Each NAME is a YAML file or one of: {', '.join(recipes)}. Settings:\n{describe(config_class)}")
        return
    log_warnings()
    train_tokenizer(parse_config(config_class, [*_with_paths(options.settings, recipes)]))


def recipes_of(modality: str) -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("vpvae_hf.recipes"))) / modality
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _with_paths(settings: Sequence[str], recipes: dict[str, Path]) -> Iterator[str]:
    """The settings, with paths in place of the names of recipes."""
    of_config = False
    for word in settings:
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            yield f"{option}={_path(value, recipes)}"
        else:
            yield str(_path(word, recipes)) if of_config else word
        of_config = word == "--config"


def _path(name: str, recipes: dict[str, Path]) -> Path:
    path = Path(name).expanduser()
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if name not in recipes:
        raise ValueError(f"there is no file and no recipe {name}; {did_you_mean(name, recipes)}")
    return recipes[name]
