"""A few bytes that stand for many are measured before they are unpacked."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.storage.types.plain import converted, plain_type
from tests.storage.types.test_table import planned, written

_TEXT = "x" * 2**20
_ROWS = 300
_ZEROS = pa.array(np.zeros(_ROWS, np.int32))


def viewed(rows: int) -> pa.Array:
    """A view of one text in each row."""
    _, view, text = pa.array([_TEXT], pa.string_view()).buffers()
    return pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(view.to_pybytes()[:16] * rows), text])


DICTIONARY = pa.DictionaryArray.from_arrays(_ZEROS, pa.array([_TEXT]))
BOMBS = {
    "dictionary": DICTIONARY,
    "dictionary of views": pa.DictionaryArray.from_arrays(_ZEROS, viewed(1)),
    "list of a dictionary": pa.ListArray.from_arrays(pa.array([0, _ROWS]), DICTIONARY),
    "view": viewed(_ROWS),
    "run": pa.RunEndEncodedArray.from_arrays(pa.array([_ROWS], pa.int32()), pa.array([_TEXT])),
    "list view": pa.ListViewArray.from_arrays(
        _ZEROS, pa.array(np.full(_ROWS, 2**20, np.int32)), pa.array(np.zeros(2**20, np.int8))
    ),
}


@pytest.mark.parametrize("array", BOMBS.values(), ids=BOMBS)
def test_an_array_that_would_unpack_to_too_much_is_refused(array: pa.Array) -> None:
    with pytest.raises(ValueError, match="in a few rows; the limit is"):
        converted(array, plain_type(array.type))


@pytest.mark.parametrize("array", [DICTIONARY.slice(0, 257), viewed(257)], ids=["dictionary", "view"])
def test_rows_that_share_a_long_text_are_read_one_by_one(array: pa.Array) -> None:
    _, records = planned(written(array, ".arrow"))
    assert [len(record.passed["c"]) for record in records] == [2**20] * 257


def test_a_row_that_would_unpack_to_too_much_is_dead() -> None:
    good = pa.ListArray.from_arrays(pa.array([0, 1]), DICTIONARY)
    _, records = planned(written(pa.concat_arrays([good, BOMBS["list of a dictionary"], good]), ".arrow"))
    assert [record.dead and record.dead.error_type for record in records] == [None, "InvalidValue", None]
    assert records[1].dead
    assert records[1].dead.message.startswith("column 'c': 314572800 bytes in a few rows")
