"""The command line of a recipe: settings in, what was trained out."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vpvae_hf.quantizers import NoCodesError

from .arguments import describe, parse_config
from .config import RunConfig

Config = TypeVar("Config", bound=RunConfig)


def run_recipe(
    config_class: type[Config], train: Callable[[Config], Path], description: str, arguments: Sequence[str]
) -> int:
    """Train as the arguments say; errors that a user can mend are printed in one line.

    Args:
        config_class: of the settings.
        train: takes the settings, such as `train_tokenizer`.
        description: what --help begins with.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interruption.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("vpvae_hf").setLevel(logging.INFO)
    if "--help" in arguments or "-h" in arguments:
        print(f"{description}\nSettings: --config FILE.yaml, as often as wanted, and\n{describe(config_class)}")
        return 0
    try:
        train(parse_config(config_class, arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError, NoCodesError) as error:
        logging.getLogger("train").error(error)
        return 1
    return 0
