"""How many rows of a Parquet file can be taken at a time: a few bytes of it may stand for gigabytes.

A value stands once in a column's dictionary page and as often in the column as its rows say; and a number of rows, or
of values in a list, takes no more bytes than its digits.
"""

from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import UserError

_ROWS = 256
_BYTES = 256 * 2**20  # that a batch may have, where the dictionaries' longest values could fill it
_NESTED_VALUES = 2**26  # of a column of lists in one row group
_PLAUSIBLE_ROWS, _ROWS_A_BYTE = 10**7, 10
_DICTIONARY_PAGE = 2
_HEADER = 16  # bytes that hold a page's kind and size


def check_rows(metadata: pq.FileMetaData, size: int | None, path: str) -> None:
    """`UserError` for a file that says it has far more rows than its bytes could tell apart."""
    if metadata.num_rows > max(_PLAUSIBLE_ROWS, _ROWS_A_BYTE * (size or 0)):
        raise UserError(f"input: {path} has {size} bytes and says it has {metadata.num_rows} rows; write it anew")


def batch_rows(group: pq.RowGroupMetaData, f: Any, path: str) -> int:
    """Rows of a row group that can be held at a time; ``f``: the open file, whose place is kept."""
    place, largest = f.tell(), 1
    for number in range(group.num_columns):
        column = group.column(number)
        if "." in column.path_in_schema and column.num_values > _NESTED_VALUES:
            raise UserError(
                f"input: {path} has {column.num_values} values of {column.path_in_schema[:100]!r} in one row group, at"
                f" most {_NESTED_VALUES} are taken; write it with smaller row groups"
            )
        if column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
            shared = "DELTA_BYTE_ARRAY" in column.encodings  # values that repeat the start of those before them
            largest = max(largest, column.total_uncompressed_size if shared else _dictionary_bytes(column, f))
    f.seek(place)
    return max(1, min(_ROWS, _BYTES // largest))


def _dictionary_bytes(column: pq.ColumnChunkMetaData, f: Any) -> int:
    """Unpacked size of the dictionary page; 0 where there is none."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    if start < 0:
        return 0
    f.seek(start)
    kind, size = _page_header(f.read(_HEADER))
    return size if kind == _DICTIONARY_PAGE else 0


def _page_header(content: bytes) -> tuple[int, int]:
    """Kind and unpacked size of a page: the first two fields of a struct in Thrift's compact protocol."""
    values, at = [], 0
    for _ in range(2):
        if content[at : at + 1] != b"\x15":  # the next field, a 32-bit number
            return -1, 0
        at, value, shift = at + 1, 0, 0
        while at < len(content):
            value |= (content[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if content[at - 1] < 0x80:
                break
        values.append((value >> 1) ^ -(value & 1))
    return values[0], max(0, values[1])
