"""Write tables: TSV as BIDS has it, and Parquet with what its columns mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["ParquetFile", "write_json", "write_tsv"]


def write_tsv(frame: pd.DataFrame, path: Path, *, append: bool = False) -> None:
    """Write rows of a TSV: missing is ``n/a``, flags are ``true`` and ``false``.

    Parameters
    ----------
    frame
        Table; its index is not written. Tabs and line ends in text become spaces.
    path
        File; its folder is made.
    append
        Add rows to the file, without a header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = frame.copy()
    for name in shown.columns:
        column = shown[name]
        if column.dtype.kind == "b":
            shown[name] = np.where(column, "true", "false")
        elif column.dtype.kind not in "iuf":
            text = column.map(_text, na_action="ignore").replace("", None)
            shown[name] = text
    shown.to_csv(
        path,
        sep="\t",
        index=False,
        header=not append,
        mode="a" if append else "w",
        na_rep="n/a",
        lineterminator="\n",
    )


def _text(value: object) -> str:
    """One cell of text, without what ends a cell or a line."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return " ".join(str(value).split("\t")).replace("\r", " ").replace("\n", " ")


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file, keys in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


class ParquetFile:
    """A Parquet file that is written block by block: a context manager.

    Parameters
    ----------
    path
        File; its folder is made.
    columns
        What every column means (``Description``, ``Units``, ...), kept as JSON in the metadata
        of its field.
    about
        What is known of the whole table, kept as JSON in the metadata of the schema under
        ``scalebrain``.
    """

    def __init__(
        self, path: Path, *, columns: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._columns = columns
        self._about = about
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "ParquetFile":
        """Make the folder."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the footer."""
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: pd.DataFrame) -> None:
        """Add rows as one row group; every block has the columns of the first."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, self._schema(frame), compression="zstd")
        schema = self._writer.schema
        arrays = [_arrow(frame[field.name], field.type) for field in schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _schema(self, frame: pd.DataFrame) -> "pa.Schema":
        """Types of the columns with what they mean."""
        import pyarrow as pa

        fields = []
        for name in map(str, frame.columns):
            told = {
                key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for key, value in self._columns.get(name, {}).items()
            }
            fields.append(pa.field(name, _type_of(frame[name]), metadata=told))
        about = json.dumps(self._about, ensure_ascii=False, sort_keys=True)
        return pa.schema(fields, metadata={"scalebrain": about})


def _type_of(column: "pd.Series[Any]") -> "pa.DataType":
    """Arrow type of a column: numbers and flags are nullable, the rest is text."""
    import pyarrow as pa

    return {"b": pa.bool_(), "i": pa.int64(), "u": pa.int64(), "f": pa.float64()}.get(
        column.dtype.kind, pa.string()
    )


def _arrow(column: "pd.Series[Any]", kind: "pa.DataType") -> "pa.Array":
    """Column as Arrow has it; NaN and empty text are null."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        text = [None if v is None or v != v or v == "" else _text(v) for v in column.tolist()]
        return pa.array(text, type=kind)
    return pa.array(column.to_numpy(), type=kind, from_pandas=True)
