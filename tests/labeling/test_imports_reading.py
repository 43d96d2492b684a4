"""Files to records: every kind of file, and everything that may be wrong with one."""

import csv
import gzip
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.imports.parquet_bounds import unpacked_sizes
from labeling.imports.reading import (
    FileProblem,
    Progress,
    Record,
    read_records,
)


def read(path, **options) -> list[Record]:
    return list(read_records(path, **options))


def written(tmp_path, name: str, data: str | bytes):
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_json_lines_keep_their_line_numbers(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"n": 1}\n\n{"n": 2}\r\n{"n": 3}')
    assert [(r.line, r.value) for r in read(path)] == [(1, {"n": 1}), (3, {"n": 2}), (4, {"n": 3})]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    for name in ("a.jsonl", "a.json"):
        path = written(tmp_path, name, b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n')
        assert [r.value for r in read(path)] == [{"n": 1}, {"n": 2}]
    path = written(tmp_path, "b.json", b'\xef\xbb\xbf[{"n": 1}]')
    assert [r.value for r in read(path)] == [{"n": 1}]
    path = written(tmp_path, "a.csv", b"\xef\xbb\xbfn,m\n1,2\n")
    assert [r.value for r in read(path)] == [{"n": "1", "m": "2"}]


def test_a_broken_line_is_one_problem_and_the_others_are_read(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"n": 1}\n{"n": \n{"n": NaN}\n{"n": 4}\n')
    records = read(path)
    assert [bool(r.problem) for r in records] == [False, True, True, False]
    assert records[1].text == '{"n":'
    assert records[1].problem.startswith("broken JSON")
    assert records[2].problem == "NaN is not a JSON number"


def test_bytes_that_are_no_utf8_are_a_problem_of_their_line(tmp_path):
    path = written(tmp_path, "a.jsonl", b'{"n": "\xff"}\n{"n": 2}\n')
    records = read(path)
    assert records[0].problem == "not valid UTF-8 at byte 8"
    assert records[1].value == {"n": 2}
    path = written(tmp_path, "a.csv", b"n,m\n\xff,1\n2,3\n")
    assert [r.problem for r in read(path)] == ["not valid UTF-8", ""]


def test_utf16_is_named_for_what_it_is(tmp_path):
    path = written(tmp_path, "a.csv", "n,m\n1,2\n".encode("utf-16"))
    with pytest.raises(FileProblem, match="is UTF-16 text: save it as UTF-8"):
        read(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_gives_its_elements(tmp_path, indent):
    values = [{"a": 'x"]},{\\', "b": [1, [2, {"c": "]"}]]}, {"a": "é\n"}, 3, "text", None, []]
    path = written(tmp_path, "a.json", json.dumps(values, indent=indent))
    records = read(path)
    assert [r.value for r in records] == values
    assert [r.line for r in records] == [1, 2, 3, 4, 5, 6]


def test_a_json_file_may_hold_one_object_a_line_or_one_object(tmp_path):
    path = written(tmp_path, "a.json", '{"n": 1}\n{"n": 2}\n')
    assert [r.value for r in read(path)] == [{"n": 1}, {"n": 2}]
    path = written(tmp_path, "b.json", '{\n "n": 1\n}\n{\n "n": 2\n}\n')
    assert [r.value for r in read(path)] == [{"n": 1}, {"n": 2}]


def test_a_broken_element_of_an_array_is_rejected_alone(tmp_path):
    path = written(tmp_path, "a.json", '[{"n": 1}, {"n": oops}, {"n": 3}]')
    records = read(path)
    assert [r.value for r in records] == [{"n": 1}, None, {"n": 3}]
    assert records[1].text == '{"n": oops}'


def test_an_array_that_stops_in_the_middle_says_so(tmp_path):
    path = written(tmp_path, "a.json", '[{"n": 1}, {"n": 2')
    records = read(path)
    assert records[0].value == {"n": 1}
    assert "the file ends inside a record" in records[1].problem
    assert records[1].text.strip() == '{"n": 2'


def test_text_after_an_array_is_not_dropped(tmp_path):
    path = written(tmp_path, "a.json", '[{"n": 1}] and more')
    assert [r.problem for r in read(path)] == [
        "",
        "broken JSON: something stands outside of the records",
    ]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        )
    ),
    indent=st.sampled_from([None, 0, 3]),
)
def test_any_array_is_cut_into_its_own_elements(tmp_path_factory, values, indent):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert [r.value for r in read(path)] == values


def test_csv_cells_with_line_breaks_quotes_and_other_delimiters(tmp_path):
    path = written(tmp_path, "a.csv", 'prompt,b\r\n"two\r\nlines, ""quoted""",x\r\ny,z\r\n')
    records = read(path)
    assert records[0].value == {"prompt": 'two\r\nlines, "quoted"', "b": "x"}
    assert [r.line for r in records] == [2, 4]
    for delimiter in ";\t":
        path = written(tmp_path, "b.csv", f"a{delimiter}b\n1{delimiter}2,3\n")
        assert [r.value for r in read(path)] == [{"a": "1", "b": "2,3"}]


def test_a_csv_row_of_the_wrong_width_is_a_problem(tmp_path):
    path = written(tmp_path, "a.csv", "a,b\n1\n1,2,3\n1,2\n")
    assert [r.problem for r in read(path)] == [
        "1 cells under 2 column names",
        "3 cells under 2 column names",
        "",
    ]


def test_a_csv_header_that_names_a_column_twice_is_refused(tmp_path):
    with pytest.raises(FileProblem, match="names a column twice"):
        read(written(tmp_path, "a.csv", "a,a\n1,2\n"))


def test_messages_in_a_csv_cell_are_read_and_a_json_answer_stays_text(tmp_path):
    messages = json.dumps([{"role": "user", "content": "Hi"}]).replace('"', '""')
    path = written(
        tmp_path,
        "a.csv",
        f'prompt,response_a,metadata\n"{messages}","{{""n"": 1}}","{{""n"": 1}}"\n',
    )
    assert read(path)[0].value == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "response_a": '{"n": 1}',
        "metadata": {"n": 1},
    }


def test_an_open_quote_does_not_take_the_rest_of_a_large_file_into_memory(tmp_path):
    path = written(tmp_path, "a.csv", 'a,b\n1,"open\n' + "x,y\n" * 5000)
    limit = csv.field_size_limit(10_000)
    try:
        records = read(path)
    finally:
        csv.field_size_limit(limit)
    assert any("field larger than" in r.problem for r in records)
    assert len(records) > 1


def test_gzip_is_known_by_its_content_and_not_by_its_name(tmp_path):
    packed = gzip.compress(b'{"n": 1}\n')
    assert read(written(tmp_path, "a.jsonl", packed))[0].value == {"n": 1}
    assert read(written(tmp_path, "b.jsonl.gz", b'{"n": 1}\n'))[0].value == {"n": 1}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz"])
def test_a_truncated_gzip_gives_what_can_be_read_and_says_that_it_ends(tmp_path, name):
    lines = "".join(json.dumps({"n": n, "text": f"{n * n} words"}) + "\n" for n in range(2000))
    if ".csv" in name:
        lines = "n,text\n" + "".join(f"{n},{n * n} words\n" for n in range(2000))
    packed = gzip.compress(lines.encode())
    records = read(written(tmp_path, name, packed[: len(packed) // 2]))
    assert sum(not r.problem for r in records) > 100
    assert records[-1].problem == "the gzip file is damaged or ends too early; what follows is lost"


def test_a_gzip_bomb_stops_at_its_bound(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    records = read(path, max_bytes=8 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.problem for r in records] == [
        "the file unpacks to more than is allowed; what follows is left out"
    ]
    assert peak < 40 << 20


@pytest.mark.parametrize(
    ("rows", "text", "read_before"),
    [(4_000, "x" * 100_000, True), (2_000_000, None, True), (1, "x" * 9_000_000, False)],
    ids=["one long text in every row", "rows of nothing", "more than it may in one piece"],
)
def test_a_parquet_bomb_stops_at_its_bound(tmp_path, rows, text, read_before):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    column = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([None if text is None else 0] * rows, "int32"), pyarrow.array([text or ""])
    )
    parquet.write_table(pyarrow.table({"prompt": column}), path, compression="zstd")
    assert path.stat().st_size < 20_000

    n_read, last = 0, None
    for record in read_records(path, max_bytes=8 << 20):
        n_read, last = n_read + 1, record

    assert last.problem == "the file unpacks to more than is allowed; what follows is left out"
    assert (n_read > 1) is read_before
    assert n_read <= (8 << 20) // 64 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_of_100_mb_is_rejected_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    start, quote, end = {
        "a.jsonl": ('{"n": 1}\n', '{"n": "', '"}\n{"n": 3}\n'),
        "a.json": ('[{"n": 1}, ', '{"n": "', '"}, {"n": 3}]'),
        "a.csv": ("n,m\n1,2\n", "", ",2\n3,4\n"),
    }[name]
    with path.open("w") as file:
        file.write(start + quote)
        for _ in range(100):
            file.write("x" * (1 << 20))
        file.write(end)
    tracemalloc.start()
    records = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.problem for r in records] == ["", "longer than 16 MiB", ""]
    assert len(records[1].text) < 200_000
    assert peak < 100 << 20


def test_json_nested_too_deep_is_a_problem_of_its_line(tmp_path):
    path = written(tmp_path, "a.jsonl", "[" * 100_000 + "]" * 100_000 + '\n{"n": 2}\n')
    assert [r.problem for r in read(path)] == ["nested too deep", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_an_empty_file_has_no_records(tmp_path, name):
    assert read(written(tmp_path, name, b"")) == []


def test_an_unknown_kind_of_file_is_one_clear_line(tmp_path):
    path = written(tmp_path, "photo.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with pytest.raises(FileProblem, match=r"photo.png is of no known kind: give \.jsonl"):
        read(path)
    assert read(written(tmp_path, "export.txt", '{"n": 1}\n'))[0].value == {"n": 1}


def test_parquet_gives_records_or_one_clear_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [{"prompt": "Hi?", "turns": [{"role": "user", "content": "x"}], "n": None}] * 3
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [r.value for r in read(path)] == rows
    packed = written(tmp_path, "b.parquet.gz", gzip.compress(path.read_bytes()))
    assert [r.line for r in read(packed)] == [1, 2, 3]
    with pytest.raises(FileProblem, match="no readable Parquet file"):
        read(written(tmp_path, "c.parquet", b"PAR1 and nothing more"))


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("labeling.imports.reading.importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileProblem, match=r"pip install '\.\[parquet\]'"):
        read(written(tmp_path, "a.parquet", b"PAR1"))
    with pytest.raises(FileProblem, match="hf:// needs the datasets library"):
        read("hf://owner/name:train")


def test_an_address_of_the_hub_is_checked_before_anything_is_loaded():
    with pytest.raises(FileProblem, match=r"not of the form hf://owner/name\[/config\]:split"):
        read("hf://no-split")


def test_progress_runs_to_the_size_of_the_file(tmp_path):
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(b'{"n": 1}\n' * 1000))
    progress = Progress()
    list(read_records(path, progress))
    assert progress.done == progress.total == path.stat().st_size


@pytest.mark.slow
def test_a_data_set_is_read_through_the_datasets_library(tmp_path, monkeypatch):
    """A folder that is called owner/name stands in for the hub: the library reads both alike."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    rows = [{"prompt": f"Question {n}?", "chosen": "x", "rejected": "y"} for n in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(r.line, r.value) for r in read("hf://owner/name:train")] == list(enumerate(rows, 1))
    with pytest.raises(FileProblem, match="hf://owner/name:dev cannot be read"):
        read("hf://owner/name:dev")


def with_footer(path, footer: bytes) -> Path:
    """A Parquet file whose footer these bytes are said to be."""
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    return path


def test_a_parquet_footer_that_is_too_long_is_refused_before_it_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(FileProblem, match="its footer takes 5 MB, more than 2: write it with"):
        read(with_footer(tmp_path / "a.parquet", b"\0" * (5 << 20)))


def test_a_parquet_footer_that_promises_a_million_row_groups_is_not_believed(tmp_path):
    """pyarrow would make room for them all before it looks whether they are there."""
    pytest.importorskip("pyarrow")
    version, schema, rows = b"\x15\x02", b"\x19\x1c\x48\x01a\x15\x02\x00", b"\x16\x02"
    groups = b"\x19\xfc" + b"\xbf\x84\x3d"  # a list of 999,999 structures
    with pytest.raises(FileProblem, match=r"no readable Parquet file: .*[Ee]xceed"):
        read(with_footer(tmp_path / "a.parquet", version + schema + rows + groups + b"\0" * 100))


def test_pages_that_are_larger_than_their_parquet_footer_says_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["x" * (8 << 20)]})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    column = parquet.ParquetFile(path).metadata.row_group(0).column(0)
    assert unpacked_sizes(path.open("rb"), parquet.read_metadata(path)) == [(8 << 20) + 10]

    def varint(number: int, length: int) -> bytes:
        """As Thrift writes it, if need be longer than necessary."""
        parts = [(2 * number >> 7 * n) & 127 | 128 for n in range(length)]
        return bytes([*parts[:-1], parts[-1] & 127])

    size = column.total_uncompressed_size
    honest = varint(size, 4)
    assert path.read_bytes().count(honest) >= 1
    path.write_bytes(path.read_bytes().replace(honest, varint(100, 4)))

    with pytest.raises(FileProblem, match="pages of its column prompt are larger than its footer"):
        read(path)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_page_of_a_parquet_file_is_found_by_its_header(tmp_path, compression, version):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [{"prompt": f"{n} " * 50, "n": n, "turns": [{"content": None}]} for n in range(3000)]
    parquet.write_table(
        pyarrow.Table.from_pylist(rows),
        path,
        compression=compression,
        data_page_size=2000,
        row_group_size=1000,
        data_page_version=version,
    )
    metadata = parquet.read_metadata(path)
    claimed = [
        sum(metadata.row_group(n).column(c).total_uncompressed_size for c in range(3))
        for n in range(3)
    ]
    found = unpacked_sizes(path.open("rb"), metadata)
    # What the footer says holds the headers too.
    assert all(0.8 * says < is_ <= says for says, is_ in zip(claimed, found, strict=True))
    assert [record.value for record in read(path)] == rows
