"""Reads the segments of a table with pyarrow and with DuckDB and compares every value with what SQL says.

Uses the server that libpq's environment names, whose data directory must be readable, and a database with the extension.
Columns are found by their field id, which is the attribute's number; rows by `_kalam_tid`. A type that no Parquet type can say is
binary: of those columns the marker is checked. A single value that its column's type cannot say is null there, and counted in
`kalam.table_segments`.
"""

import datetime
import decimal
import json
import os
import struct
import sys
import uuid

import duckdb
import psycopg2
import psycopg2.extensions
import pyarrow
import pyarrow.parquet

SCHEMA = "parquet_readers"
EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)

# Name, type, values as SQL; one row in five has NULL, unless the column is the key.
COLUMNS = [
    ("id", "bigint PRIMARY KEY", "i"),
    ("flag", "boolean", "i % 2 = 0"),
    ("tiny", "smallint", "(i * 7 % 65536 - 32768)::smallint"),
    ("number", "integer", "CASE i % 3 WHEN 0 THEN -2147483648 WHEN 1 THEN 2147483647 ELSE i END"),
    ("large", "bigint", "CASE i % 3 WHEN 0 THEN -9223372036854775808 WHEN 1 THEN 9223372036854775807 ELSE i END"),
    ("single", "real", "(ARRAY['NaN', 'Infinity', '-Infinity', '1.1', '-0', '3e38'])[1 + i % 6]::real"),
    ("double", "double precision", "(ARRAY['NaN', 'Infinity', '-Infinity', '1.1', '1e-300', '0.1'])[1 + i % 6]::float8"),
    ("money_sum", "numeric(12, 2)", "CASE WHEN i % 9 = 2 THEN 'NaN' ELSE (i * 1001 - 500000) / 100.0 END"),
    ("whole", "numeric(38, 0)", "('9' || repeat('8', i % 38))::numeric"),
    ("scaled", "numeric(20, 20)", "i / 100000000000.0"),
    ("any_numeric", "numeric", "(ARRAY['NaN', '0', '1.500', '-12345678901234567890.000000000000001', '1e-30', '1e20'])[1 + i % 6]::numeric"),
    ("body", "text", "CASE WHEN i % 100 = 3 THEN repeat(md5(i::text), 3000) ELSE 'wörds ' || i END"),
    ("empty", "text", "''"),
    ("short", "varchar(20)", "'v' || i"),
    ("padded", "char(8)", "'c' || i % 1000"),
    ("raw", "bytea", "decode(md5(i::text), 'hex')"),
    ("ident", "uuid", "md5(i::text)::uuid"),
    ("day", "date", "'0001-01-01'::date + i % 3000 * 700"),
    ("clock", "time", "'00:00:00'::time + i * interval '61.000001 s'"),
    ("moment", "timestamp", "'1900-01-01'::timestamp + i * interval '17 days 3.000001 s'"),
    ("instant", "timestamptz", "'1999-12-31 23:59:59.999999+00'::timestamptz + i * interval '1 hour'"),
    ("document", "json", "('{ \"n\":  ' || i || ' }')::json"),
    ("facts", "jsonb", "jsonb_build_object('n', i, 'deep', jsonb_build_array(1.50, NULL, true, 'ü\"\\'), 'none', '{}'::jsonb)"),
    ("numbers", "integer[]", "CASE i % 4 WHEN 0 THEN '{}' WHEN 1 THEN ARRAY[i, NULL, -i] ELSE ARRAY[i] END"),
    ("tags", "text[]", "ARRAY['a' || i, '', NULL, 'comma, \"quote\"']"),
    ("sums", "numeric(8, 3)[]", "ARRAY[i / 1000.0, NULL]"),
    ("positive", "positive", "i"),
    ("feeling", "mood", "(ARRAY['calm', 'tense'])[1 + i % 2]::mood"),
    ("span", "interval", "i * interval '1 hour'"),
    ("some_range", "int4range", "int4range(i, i + 10)"),
    ("matrix", "integer[]", "ARRAY[[i, 2], [3, 4]]"),
    ("infinite_instant", "timestamptz", "(ARRAY['infinity', '-infinity', '2024-02-29 12:00+00'])[1 + i % 3]::timestamptz"),
    ("infinite_day", "date", "(ARRAY['infinity', '-infinity', '2024-02-29'])[1 + i % 3]::date"),
]
BINARY = {"feeling", "span", "some_range"}
ROWS = 3000
KEY = 1


class Failed(Exception):
    pass


def check(condition, words):
    if not condition:
        raise Failed(words)


def connect():
    connection = psycopg2.connect("")
    connection.autocommit = True
    # Values that Python's own types cannot hold come as texts.
    as_text = psycopg2.extensions.new_type((114, 3802, 1082, 1184, 1114, 2950, 3904, 1186), "AS_TEXT", lambda value, _: value)
    psycopg2.extensions.register_type(as_text, connection)
    cursor = connection.cursor()
    cursor.execute("SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SET bytea_output = 'hex'; SET extra_float_digits = 1")
    return cursor


def create(cursor):
    cursor.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}; SET search_path = {SCHEMA}")
    cursor.execute("CREATE TYPE mood AS ENUM ('calm', 'tense'); CREATE DOMAIN positive AS integer CHECK (VALUE > 0)")
    columns = ", ".join(f"{name} {kind}" for name, kind, _ in COLUMNS)
    cursor.execute(f"CREATE TABLE t ({columns}) USING kalam_shared WITH (kalam.flush_policy = 'off')")
    insert(cursor, 1, ROWS)


def insert(cursor, first, last, columns=COLUMNS):
    values = ", ".join(text if name == "id" else f"CASE WHEN (i + {place}) % 5 <> 0 THEN {text} END"
                       for place, (name, _, text) in enumerate(columns))
    names = ", ".join(name for name, _, _ in columns)
    cursor.execute(f"INSERT INTO t ({names}) SELECT {values} FROM generate_series({first}, {last}) i")


def flush(cursor, table="t"):
    """Until all rows are cold: a snapshot of autovacuum may keep some hot for a moment."""
    for _ in range(300):
        cursor.execute(f"SELECT kalam.checkpoint(); SELECT kalam.flush('{table}', wait => true)")
        cursor.execute(f"SELECT (SELECT count(*) FROM {table}) - coalesce((SELECT sum(live_rows) FROM kalam.table_segments('{table}')), 0)")
        if cursor.fetchone()[0] == 0:
            return
    raise Failed("rows stay hot")


def files(cursor, table="t"):
    cursor.execute("SELECT current_setting('data_directory')")
    directory = os.path.join(cursor.fetchone()[0], "kalamdb_segments")
    cursor.execute("SELECT path, rows, live_rows, columns::text FROM kalam.table_segments(%s) WHERE live_rows > 0 ORDER BY segment", (table,))
    return [(os.path.join(directory, path), *rest) for path, *rest in cursor.fetchall()]


def table_of(cursor):
    """The table's columns by number, and its rows by place, as SQL has them."""
    cursor.execute("SELECT attnum, attname, format_type(atttypid, NULL) FROM pg_attribute"
                   " WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum")
    columns = {number: (name, kind) for number, name, kind in cursor.fetchall()}
    names = ", ".join(f'"{name}"' for name, _ in columns.values())
    cursor.execute(f"SELECT ctid::text, {names} FROM t")
    rows = {}
    for ctid, *values in cursor.fetchall():
        block, offset = ctid.strip("()").split(",")
        rows[int(block) << 16 | int(offset)] = dict(zip(columns, values))
    return columns, rows


def from_sql(kind, value):
    """A value of SQL as it is compared."""
    if value is None:
        return None
    if kind == "real":
        return struct.pack("<f", value) if value == value else "NaN"
    if kind == "double precision":
        return struct.pack("<d", value) if value == value else "NaN"
    if kind == "bytea":
        return bytes(value)
    if kind == "jsonb":
        return json.loads(value, parse_float=decimal.Decimal)
    if kind == "uuid":
        return uuid.UUID(value).bytes
    if kind == "timestamp with time zone":
        return value.removesuffix("+00")
    if kind == "time without time zone":
        return value.isoformat()
    if kind == "numeric":
        return format(value, "f")
    if kind == "numeric[]":
        return [None if one is None else format(one, "f") for one in value]
    return value


def moment(value):
    """A time as PostgreSQL writes it."""
    text = value.replace(tzinfo=None).isoformat(sep=" ")
    return text.rstrip("0") if "." in text else text


def from_reader(kind, value):
    """A value of a reader in the same form."""
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        return moment(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, uuid.UUID):
        return value.bytes
    if kind == "real":
        return struct.pack("<f", value) if value == value else "NaN"
    if kind == "double precision":
        return struct.pack("<d", value) if value == value else "NaN"
    if kind == "jsonb":
        return json.loads(value, parse_float=decimal.Decimal)
    if kind == "numeric[]":
        return [None if one is None else format(one, "f") for one in value]
    return value


def is_exception(kind, value):
    """Whether a value of SQL has no counterpart in its column's Parquet type."""
    if kind == "numeric":
        return value in ("NaN", "Infinity", "-Infinity")
    if kind.endswith("[]"):
        return any(isinstance(one, list) for one in value)
    return value in ("infinity", "-infinity") and kind in ("date", "timestamp with time zone")


def compare(reader, path, columns, rows, fields, found):
    """Compares what a reader found with SQL; the number of values, and how many of them are exceptions, by field id."""
    compared, exceptions = 0, dict.fromkeys(fields, 0)
    for place, tid in enumerate(found["_kalam_tid"]):
        expected = rows.get(tid)
        if expected is None:
            continue
        for number, (name, is_binary) in fields.items():
            if number not in columns:
                continue
            kind = columns[number][1]
            value, wanted = found[name][place], from_sql(kind, expected[number])
            where = f"{reader}: {os.path.basename(path)}, {tid >> 16}/{tid & 0xffff}, {columns[number][0]}"
            if is_binary:
                check((value is None) == (wanted is None), f"{where}: {value!r} for {wanted!r}")
                continue
            if wanted is not None and name != "any_numeric" and is_exception(kind, wanted):
                wanted = None
                exceptions[number] += 1
            # A row that is older than a column has null in it, whatever the column's first default says.
            if name == "added" and value is None and expected[KEY] <= ROWS and expected[KEY] % 500:
                continue
            value = from_reader(kind, value)
            check(value == wanted, f"{where}: {value!r} for {wanted!r}")
            compared += 1
    return compared, exceptions


def read_with_pyarrow(path):
    """The fields by their id, and all values."""
    file = pyarrow.parquet.ParquetFile(path)
    fields = {}
    for field in file.schema_arrow:
        metadata = field.metadata or {}
        if b"kalam.type" in metadata:
            fields[int(metadata[b"PARQUET:field_id"])] = (field.name, metadata[b"kalam.encoding"] == b"binary")
    for group in range(file.metadata.num_row_groups):
        for place in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(place)
            check(column.compression == "ZSTD", f"{path}: {column.path_in_schema} is {column.compression}")
            check(column.has_offset_index, f"{path}: {column.path_in_schema} has no offset index")
            if column.path_in_schema == "id":
                check(column.has_column_index and column.is_stats_set, f"{path}: id has no column index")
    return fields, {name: column.to_pylist() for name, column in zip(file.schema_arrow.names, file.read().columns)}


def read_with_duckdb(path):
    connection = duckdb.connect()
    connection.execute("SET timezone = 'UTC'")
    relation = connection.execute(f"SELECT * FROM read_parquet('{path}')")
    names = [column[0] for column in relation.description]
    rows = relation.fetchall()
    ids = connection.execute(f"SELECT name, field_id FROM parquet_schema('{path}') WHERE field_id IS NOT NULL").fetchall()
    return dict(ids), {name: [row[place] for row in rows] for place, name in enumerate(names)}


def check_bloom_filter(cursor):
    """Values in no order have a filter from 1,024 rows on, which excludes others."""
    cursor.execute("CREATE TABLE shuffled (k bigint PRIMARY KEY, v int) USING kalam_shared WITH (kalam.flush_policy = 'off');"
                   "INSERT INTO shuffled SELECT i * 600011::bigint % 1000003, i FROM generate_series(1, 5000) i")
    flush(cursor, "shuffled")
    connection = duckdb.connect()
    excluded = 0
    for path, *_ in files(cursor, "shuffled"):
        groups = connection.execute(f"SELECT count(*), count(bloom_filter_offset) FROM parquet_metadata('{path}') WHERE path_in_schema = 'k'")
        groups, with_filter = groups.fetchone()
        check(groups == with_filter > 0, f"{path}: {with_filter} bloom filters in {groups} row groups")
        probe = f"SELECT bool_and(bloom_filter_excludes) FROM parquet_bloom_probe('{path}', 'k', ?)"
        cursor.execute("SELECT k FROM shuffled ORDER BY k LIMIT 500")
        for (present,) in cursor.fetchall():
            check(not connection.execute(probe, [present]).fetchone()[0], f"{path}: the filter excludes {present}")
            excluded += connection.execute(probe, [present + 1000003]).fetchone()[0]
    check(excluded > 450, f"the filters exclude {excluded} of 500 other values")
    print(f"bloom filters: 500 values found, {excluded} of 500 others excluded")


def check_exceptions(path, is_whole, bounds, exceptions):
    for number, count in exceptions.items():
        said = bounds.get(str(number), {}).get("exceptions", 0)
        check(said == count if is_whole else said >= count, f"{path}: {said} exceptions in column {number}, {count} found")


def compare_all(cursor, what):
    columns, rows = table_of(cursor)
    paths = files(cursor)
    check(paths, "there are no segments")
    counts = [0, 0]
    for path, row_count, live_rows, bounds in paths:
        fields, found = read_with_pyarrow(path)
        check(len(found["_kalam_tid"]) == row_count, f"{path} has {len(found['_kalam_tid'])} rows, not {row_count}")
        compared, exceptions = compare("pyarrow", path, columns, rows, fields, found)
        counts[0] += compared
        check_exceptions(path, live_rows == row_count, json.loads(bounds), exceptions)
        ids, found = read_with_duckdb(path)
        check(all(ids.get(name) == number for number, (name, _) in fields.items()), f"{path}: DuckDB sees the field ids {ids}")
        counts[1] += compare("DuckDB", path, columns, rows, fields, found)[0]
    check(counts[0] == counts[1], f"pyarrow and DuckDB had {counts} values to compare")
    print(f"{what}: {len(paths)} segments, {counts[0]} values equal in pyarrow {pyarrow.__version__} and DuckDB {duckdb.__version__}")
    return fields


def main():
    cursor = connect()
    create(cursor)
    flush(cursor)
    fields = compare_all(cursor, "all types")
    binary = {name for name, is_binary in fields.values() if is_binary}
    check(binary == BINARY, f"binary columns are {sorted(binary)}")

    # The definition changes; files that are there stay as they are.
    cursor.execute("ALTER TABLE t RENAME COLUMN short TO renamed; ALTER TABLE t DROP COLUMN empty;"
                   "ALTER TABLE t ADD COLUMN added int DEFAULT 7, ADD COLUMN empty int")
    later = [column for column in COLUMNS if column[0] not in ("short", "empty")]
    later += [("renamed", "", "'r' || i"), ("added", "", "i"), ("empty", "", "-i")]
    insert(cursor, ROWS + 1, 2 * ROWS, later)
    cursor.execute("UPDATE t SET body = 'changed', facts = facts || '{\"changed\": true}' WHERE id % 500 = 0; DELETE FROM t WHERE id % 500 = 1")
    flush(cursor)
    compare_all(cursor, "columns added, dropped and renamed")
    # Short segments become one sooner or later, by this compaction or by one that a flush has asked for.
    before = {path for path, *_ in files(cursor)}
    for _ in range(20):
        cursor.execute("UPDATE t SET flag = NOT flag WHERE id % 500 = 2")
        flush(cursor)
        cursor.execute("SELECT kalam.compact('t', wait => true)")
        if before.isdisjoint(path for path, *_ in files(cursor)):
            break
    check(before.isdisjoint(path for path, *_ in files(cursor)), "no compaction has written the segments anew")
    compare_all(cursor, "after compaction")
    # Another type rewrites the table: the next files have it.
    cursor.execute("ALTER TABLE t ALTER COLUMN number TYPE numeric(14, 2), ALTER COLUMN single TYPE text")
    flush(cursor)
    compare_all(cursor, "columns of another type")
    check_bloom_filter(cursor)
    cursor.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"parquet_readers: {failure}")
