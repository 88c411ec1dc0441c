"""Types of passed-through values: what each type of a source becomes, the same in every reader.

A value is stored exactly, or refused by name; it never silently becomes another one.

1. Each Arrow type of a Parquet or Arrow file has one plain type (`plain.plain_type`), which Parquet holds and every
   reader of the output knows: text is `string`, however it was encoded. A type without one is refused with the file.
2. Text of CSV stays text. A JSON value has the type of its kind: text, boolean, 64-bit whole number, double, list, or
   struct if all objects of the column have the same keys (`common.inferred`).
3. The types of several files, or of several values, meet in the narrowest type that holds all values of both
   (`common.ColumnType`): whole numbers and doubles in a double only if no whole number is beyond 2**53.
4. A column without such a type is JSON text, which holds every JSON value as it was: whole numbers of any size, and
   objects with keys of their own. Its field is marked (`values.is_json_text`), so that readers give the values again.
5. Where a value of the output has to be JSON (JSON text, exported lines, dead letters, hashes of records), it is
   written by one rule (`exact_json.dumps`).

The table is in docs/output.md; `tests/storage/types/test_table.py` walks through it.
"""
