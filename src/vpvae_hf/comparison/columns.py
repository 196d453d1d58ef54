"""The ways in which a trained tokenizer's latents are decoded, each measured for every method alike."""

from dataclasses import dataclass
from typing import Any

from vpvae_hf.quantizers import quantizer_config


@dataclass(frozen=True)
class Column:
    """A way to decode latents, and a column of tables.

    Attributes:
        label: the column's heading.
        codebook: "own" for the method's own codes; "euclidean" or "decoder" for codes of a codebook that is refitted
            after training by this metric; None for continuous latents.
        refined: whether codes are chosen by refinement instead of as the nearest ones.
        before: the column that this one should improve on; None if there is none.
    """

    label: str
    codebook: str | None
    refined: bool = False
    before: str | None = None

    @property
    def is_refitted(self) -> bool:
        return self.codebook not in (None, "own")


COLUMNS = {
    "continuous": Column("continuous", None),
    "own": Column("own codes", "own"),
    "refitted": Column("refitted", "euclidean", before="own"),
    "refitted_decoder": Column("refitted, decoder's metric", "decoder", before="refitted"),
    "own_refined": Column("own codes, refined", "own", refined=True, before="own"),
    "refitted_refined": Column("refitted, refined", "euclidean", refined=True, before="refitted"),
}


def measured_column(name: str, quantizer: dict[str, Any]) -> str | None:
    """The column that is measured to get a method's value in column `name`; None if the method has no value there.

    A codebook that is fitted after training is the method's own, so it is measured once. A method without codes has no
    own codes, but a codebook can be fitted to its latents. Levels are refitted for each dimension separately, to which
    the decoder's metric does not apply.

    Args:
        quantizer: the settings of the method's quantizer.
    """
    column, config = COLUMNS[name], quantizer_config(quantizer)
    if column.codebook == "own" and config.needs_fitting:
        return {"own": "refitted", "own_refined": "refitted_refined"}[name]
    if column.codebook == "own":
        return None if config.codebook_size is None else name
    fits = "codebook" if config.codebook_size is None else config.fits
    if column.is_refitted and (fits is None or (fits == "levels" and column.codebook == "decoder")):
        return None
    return name
