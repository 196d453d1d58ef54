"""Reading one reader's part of a data set's shards, resumably. A reader is one loader worker of one rank."""

from collections.abc import Iterator
from typing import Any

import numpy as np

# Shards are dealt out in at most so many groups: a folder of a million files has a million shards.
_MOST_GROUPS = 1024


def shard_groups(rows, readers: int = 1) -> int:
    """In how many groups the shards of a `datasets.IterableDataset` are dealt out: as many as shards, up to a limit."""
    return min(rows.num_shards, max(_MOST_GROUPS, readers))


def library_missing(error: ImportError) -> ImportError:
    """The error for the user, who may also do without the library."""
    return ImportError(f"{error} A data set of Parquet files needs no such library.")


class ShardReader:
    """Rows of one reader's share, pass after pass; where it stands is a small dictionary.

    Each group of shards belongs to one reader. Where there are fewer groups than readers, several share one and take
    its rows in turn, so shares may differ in size.

    Args:
        rows: a `datasets.IterableDataset`.
        reader, readers: which of how many, from 0.
        seed: each pass has its own order of groups; None for the data set's own order.
        passes: how many; None for no end.
    """

    def __init__(self, rows, reader: int, readers: int, *, seed: int | None, passes: int | None):
        self._rows, self._seed, self._passes = rows, seed, passes
        self._groups = shard_groups(rows, readers)
        self._own = list(range(reader % self._groups, self._groups, readers))
        self._sharing, self._turn = len(range(reader % self._groups, readers, self._groups)), reader // self._groups
        # The pass, the group within it, rows seen of the group, and rows given in the pass.
        self._pass = self._position = self._seen = self._given = 0
        self._group: Any = None
        self._group_state: dict | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows from where it stands.

        Raises:
            ValueError: a shard that cannot be read, or an endless reader whose share has no row.
            ImportError: reading takes a library that is not installed.
        """
        while self._passes is None or self._pass < self._passes:
            order = self._order()
            while self._position < len(order):
                yield from self._rows_of(order[self._position])
                self._position += 1
                self._seen, self._group, self._group_state = 0, None, None
            if self._passes is None and self._given == 0:
                raise ValueError(
                    "the data set has no row for one of its readers; use fewer ranks or loader workers, or more data"
                )
            self._pass, self._position, self._given = self._pass + 1, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: after the last row that was given."""
        return {
            "pass": self._pass,
            "position": self._position,
            "seen": self._seen,
            "given": self._given,
            "group": self._group_state if self._group is None else self._group.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pass, self._position = state["pass"], state["position"]
        self._seen, self._given, self._group_state = state["seen"], state["given"], state["group"]

    def _order(self) -> list[int]:
        if self._seed is None:
            return self._own
        return np.random.default_rng([self._seed, self._pass]).permutation(self._own).tolist()

    def _rows_of(self, group: int) -> Iterator[dict[str, Any]]:
        self._group = self._rows.shard(num_shards=self._groups, index=group)
        if self._group_state is not None:
            self._group.load_state_dict(self._group_state)
        # Not iter(): within a loader's worker that would give the worker its share of the share.
        rows = self._group.iter(batch_size=1)
        while True:
            try:
                row = next(rows, None)
            except ImportError as error:
                raise library_missing(error) from error
            except Exception as error:
                raise ValueError(
                    f"part {group} of {self._groups} of the data set cannot be read after row {self._seen}: {error}; "
                    "mend or remove the file"
                ) from error
            if row is None:
                return
            self._seen += 1
            if (self._seen - 1) % self._sharing == self._turn:
                self._given += 1
                yield {column: values[0] for column, values in row.items()}
