"""Several streamed splits of a data set as one."""

from collections.abc import Iterator
from itertools import chain
from typing import Any


class JoinedRows:
    """Their shards, to be dealt out together, with what readers use of a `datasets.IterableDataset`.

    `datasets` itself would join streams end to end, so that a reader came to the second split after the first.

    Args:
        parts: `datasets.IterableDataset` of the same columns.
    """

    def __init__(self, parts: list[Any]):
        self._parts = parts
        self.features = parts[0].features
        self.num_shards = sum(part.num_shards for part in parts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self._parts)

    def shard(self, num_shards: int, index: int):
        """Every num_shards-th shard from the index-th on, as one `datasets.IterableDataset`."""
        from datasets import concatenate_datasets

        shards = [(part, number) for part in self._parts for number in range(part.num_shards)]
        own = [part.shard(part.num_shards, number) for part, number in shards[index::num_shards]]
        return own[0] if len(own) == 1 else concatenate_datasets(own)

    def select_columns(self, columns: list[str]) -> "JoinedRows":
        return JoinedRows([part.select_columns(columns) for part in self._parts])

    def cast_column(self, column: str, feature: Any) -> "JoinedRows":
        return JoinedRows([part.cast_column(column, feature) for part in self._parts])

    def decode(self, enable: bool) -> "JoinedRows":
        return JoinedRows([part.decode(enable) for part in self._parts])
