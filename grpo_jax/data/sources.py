"""Where rows come from: a task of ours, a local file, or a data set of the hub.

What enters is the name of a data set; what leaves are columns by field name, or for what does not fit
into memory rows one after the other, nothing rendered or judged yet. Every value of a CSV file stays text.
The only door to `datasets`, which runs no code of a data set.
"""

from __future__ import annotations

import csv
import itertools
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_jax import hub
from grpo_jax.data import word_problems

if TYPE_CHECKING:
    import datasets

EMBEDDED = {"embedded:word_problems": word_problems.problems}
FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


class Columns(Mapping):
    """Columns of a table by field name; only those that are asked for become Python values."""

    def __init__(self, table: datasets.Dataset, dataset: str):
        self._table, self._dataset = table, dataset

    def __getitem__(self, field: str) -> list[Any]:
        if field not in self._table.column_names:
            raise KeyError(field)
        try:
            return self._table[field][:]
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the field {field!r} of {self._dataset!r} holds text that is not UTF-8 ({error.reason}); save it as UTF-8"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


class RowStream:
    """Rows of one split, read one after the other as often as asked."""

    def __init__(self, dataset: str, rows: Any, *, begin: int, end: int | None):
        self._dataset, self._rows, self._begin, self._end = dataset, rows, begin, end
        first = next(self.rows(0), None)
        if first is None:
            raise ValueError(f"the data set {dataset!r} has no rows in this split")
        self.fields = sorted(first)

    def rows(self, start: int) -> Iterator[dict[str, Any]]:
        """From row `start` of the slice to its end.

        Raises:
            ValueError: a row that cannot be read.
        """
        begin = self._begin + start
        rows = self._rows[begin:] if isinstance(self._rows, list) else self._rows.skip(begin)
        stop = None if self._end is None else max(self._end - begin, 0)
        try:
            yield from itertools.islice(rows, stop)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the data set {self._dataset!r} cannot be read on: {reason}") from error


def read_columns(
    dataset: str, *, name: str = "", split: str = "train", num: int = 0
) -> Mapping[str, Sequence[Any]]:
    """All rows of one split as columns by field name.

    Args:
        dataset: a key of `EMBEDDED`; the path of a file that ends as in `FILE_FORMATS`; otherwise a hub
            id or a folder of data files.
        name: configuration of a hub data set, "" for its only one.
        split: as `datasets` writes it; a file takes any name, with a slice such as `train[:100]`.
        num: rows an embedded task makes, 0: as many as it gives by itself. Others give all.

    Raises:
        FileNotFoundError: no such file or data set.
        ConnectionError: the hub cannot be reached.
        ValueError: a file that cannot be read, an unknown ending, task or split.
    """
    path = pathlib.Path(dataset).expanduser()
    if dataset.startswith("embedded:"):
        return embedded_columns(dataset, split=split, num=num)
    if path.suffix in FILE_FORMATS:
        return file_columns(path, split=split)
    if path.is_file():
        raise ValueError(
            f"config.data.dataset {dataset!r} ends in {path.suffix!r}; a file must end in one of "
            f"{sorted(FILE_FORMATS)}: unpack or convert it"
        )
    return Columns(load_hub(dataset, name=name, split=split), dataset)


def stream_rows(dataset: str, *, name: str = "", split: str = "train") -> RowStream:
    """One split to be read row by row, so that it need not fit into memory.

    Args:
        dataset, name, split: as in `read_columns`; a slice may be of rows, `train[100:2000]`, not of percent.

    Raises: as `read_columns`, and ValueError for a `.json` file or a slice of percent.
    """
    base, begin, end = parse_slice(split)
    path = pathlib.Path(dataset).expanduser()
    if dataset.startswith("embedded:"):
        columns = embedded_columns(dataset, split=base, num=0)
        rows: Any = [
            dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ]
    elif path.suffix in FILE_FORMATS:
        rows = streamed_file(path, split=base)
    else:
        rows = load_hub(dataset, name=name, split=base, streaming=True)
    return RowStream(dataset, rows, begin=begin, end=end)


def parse_slice(split: str) -> tuple[str, int, int | None]:
    """`train[100:2000]` -> ("train", 100, 2000).

    Raises:
        ValueError: anything else in the brackets: how many rows a stream has is not known.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d*):(\d*)\])?", split)
    if match is None:
        raise ValueError(
            f"the split {split!r} cannot be streamed: only a slice of rows such as 'train[100:2000]' can; "
            "set config.data.split, or config.data.streaming_rows to 0"
        )
    return match[1], int(match[2] or 0), int(match[3]) if match[3] else None


def streamed_file(path: pathlib.Path, *, split: str) -> datasets.IterableDataset:
    datasets = _quiet_datasets()
    check_file(path)
    if path.suffix == ".json":
        raise ValueError(
            f"{str(path)!r} is read whole, as every .json; write a .jsonl, or set config.data.streaming_rows to 0"
        )
    return datasets.load_dataset(
        FILE_FORMATS[path.suffix],
        data_files={split: str(path)},
        split=split,
        streaming=True,
        **csv_options(path),
    )


def embedded_columns(dataset: str, *, split: str, num: int) -> dict[str, list[str]]:
    if dataset not in EMBEDDED:
        raise ValueError(
            f"no embedded task {dataset!r}; set config.data.dataset to one of {sorted(EMBEDDED)}"
        )
    rows = EMBEDDED[dataset](split, num=num)
    return {field: [row[field] for row in rows] for field in rows[0]}


def file_columns(path: pathlib.Path, *, split: str) -> Columns:
    from datasets.exceptions import DatasetGenerationError

    datasets = _quiet_datasets()
    check_file(path)
    # Its own cache, thrown away: a shared one may answer for an older file of the same name.
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                FILE_FORMATS[path.suffix],
                data_files={split.partition("[")[0]: str(path)},
                split=split,
                cache_dir=cache,
                keep_in_memory=True,
                **csv_options(path),
            )
        except (DatasetGenerationError, ValueError) as error:
            raise ValueError(unread(path, split, error)) from error
        return Columns(table, str(path))


def unread(path: pathlib.Path, split: str, error: Exception) -> str:
    """Why a file cannot be read, in one line: the split, the line of the file, or what the reader says."""
    reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
    if "corresponds to no data" in reason:
        return f"the data file {str(path)!r} has no rows in the split {split!r}; set config.data.split (or evaluation.split)"
    if "instruction" in reason or "slice" in reason:
        return (
            f"the split {split!r} is none: {reason} Slices look like 'train[:1000]' or 'train[:30%]'; set "
            "config.data.split (or evaluation.split)"
        )
    if path.suffix == ".jsonl" and (line := bad_line(path)):
        return f"the data file {str(path)!r} cannot be read: {line}"
    return f"the data file {str(path)!r} cannot be read: {reason}"


def bad_line(path: pathlib.Path) -> str:
    """The first line that is not a JSON object, and why; "" where all are."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8")) if line.strip() else {}
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 ({error.reason}); save it as UTF-8"
            except ValueError as error:
                return f"line {number} is not JSON ({error}); each line must be one object"
            if not isinstance(row, dict):
                return (
                    f"line {number} is no JSON object but {type(row).__name__}; each line must be one object"
                )
    return ""


def check_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no data file {str(path)!r}; set config.data.dataset")
    if path.stat().st_size == 0:
        raise ValueError(f"the data file {str(path)!r} is empty")


def csv_options(path: pathlib.Path) -> dict[str, Any]:
    """Keeps CSV values the text that they are: a gold `007` is no number and `NA` is not missing."""
    import datasets

    if path.suffix != ".csv":
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file))
    features = datasets.Features({field: datasets.Value("string") for field in header})
    return {"features": features, "keep_default_na": False}


def _quiet_datasets() -> Any:
    """The library, which from now on draws no bars and logs nothing: what it raises is told by us, once."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets


def load_hub(dataset: str, *, name: str, split: str, streaming: bool = False) -> Any:
    datasets, trouble = _quiet_datasets(), hub.trouble()
    try:
        return datasets.load_dataset(dataset, name or None, split=split, streaming=streaming)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{str(error).splitlines()[0]}; set config.data.dataset (evaluate.py: --data) to a data set of the hub or to "
            f"a file that ends in one of {sorted(FILE_FORMATS)}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"the hub cannot be reached for {dataset!r}: {trouble or error}; set config.data.dataset (evaluate.py: --data) to a local file"
        ) from error
