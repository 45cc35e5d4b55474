"""Reading rows: what is accepted, and the text of every refusal."""

from __future__ import annotations

import csv
import gzip
import json
import os

import pytest

from nbkit.data import _text, read
from nbkit.errors import DataError

GOOD = '{"prompt": "Hi", "completion": "Hello"}\n'


def written(tmp_path, content, name="data.jsonl"):
    """A file with this content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(source, **options):
    """The error that read raises, with the folder cut from its paths."""
    with pytest.raises(DataError) as caught:
        read(source, **options)
    folder = f"{source.parent}{os.sep}" if hasattr(source, "parent") else "\0"
    return str(caught.value).replace(folder, "")


class TestJsonLines:
    def test_rows_and_lines(self, tmp_path):
        """Each object is a row with the number of its line."""
        rows = read(written(tmp_path, '{"a": 1}\n{"a": 2}\n'))
        assert [{"a": 1}, {"a": 2}] == list(rows)
        assert [1, 2] == rows.lines

    @pytest.mark.parametrize(
        ("content", "lines"),
        [
            (b'\xef\xbb\xbf{"a": 1}\n', [1]),
            (b'{"a": 1}\r\n{"a": 1}\r\n', [1, 2]),
            (b'\n{"a": 1}\n  \n\r\n{"a": 1}\n\n', [2, 5]),
            (b'{"a": 1}\n{"a": 1}', [1, 2]),
        ],
        ids=["byte-order mark", "CRLF", "blank lines", "no last line end"],
    )
    def test_accepted_without_a_word(self, tmp_path, content, lines, capsys):
        """A BOM, CRLF, blank lines and a missing last line end change nothing but line numbers."""
        rows = read(written(tmp_path, content))
        assert [{"a": 1}] * len(lines) == list(rows)
        assert lines == rows.lines
        assert ("", "") == tuple(capsys.readouterr())

    def test_values_stay_as_they_are(self, tmp_path):
        """Big integers, dates and unusual line separators arrive as they were written."""
        value = {"n": 10**20, "date": "2024-01-01", "text": "a\u2028b\x85c"}
        assert value == read(written(tmp_path, json.dumps(value, ensure_ascii=False)))[0]

    def test_a_line_of_30_mb(self, tmp_path):
        """A very long line is read; only the stated bound stops it."""
        rows = read(written(tmp_path, json.dumps({"text": "x" * 30_000_000})))
        assert 30_000_000 == len(rows[0]["text"])

    def test_a_line_over_the_bound(self, tmp_path, monkeypatch):
        """A line over the bound is refused with its number, before it is held in memory."""
        assert 64 * 2**20 == _text.MAX_LINE_BYTES
        monkeypatch.setattr(_text, "MAX_LINE_BYTES", 2**20)
        text = refusal(written(tmp_path, GOOD + json.dumps({"text": "x" * 2**20})))
        assert text.startswith("data.jsonl:2: the line is longer than 1 MiB.")
        assert "jq -c '.[]'" in text

    @pytest.mark.parametrize(
        ("content", "message", "fix"),
        [
            ("", "data.jsonl is empty (0 bytes).", "make it again"),
            ("\n \n\r\n", "data.jsonl holds only blank lines.", "head -c 200"),
            (
                GOOD + '{"prompt": "Hi", "compl',
                "data.jsonl:2:18: the last line is not complete JSON (Unterminated string starting at): the file was",
                "sed -i '$d' data.jsonl",
            ),
            (
                GOOD.encode() + b'{"prompt": "caf\xe9"}\n',
                "data.jsonl:2:16: byte 0xe9 at offset 55 is not UTF-8 (Windows-1252 would read '\u00e9').",
                "iconv -f WINDOWS-1252 -t UTF-8 data.jsonl > data.utf8.jsonl",
            ),
            (
                '{"prompt": "Hi"}\n'.encode("utf-16"),
                "data.jsonl is UTF-16 text, not UTF-8 text.",
                "iconv -f UTF-16 -t UTF-8 data.jsonl > data.utf8.jsonl",
            ),
            (
                gzip.compress(GOOD.encode()),
                "data.jsonl is gzip-compressed, though its name does not end in .gz.",
                "mv data.jsonl data.jsonl.gz",
            ),
            (b"PAR1 and more", "data.jsonl is a Parquet file, not UTF-8 text.", "mv data.jsonl data.parquet"),
            (b"PK\x03\x04 and more", "data.jsonl is a zip archive, not UTF-8 text.", "unzip data.jsonl"),
            (
                GOOD + '["Hi", "Hello"]\n',
                "data.jsonl:2: a row must be a JSON object, this is a list: ['Hi', 'Hello'].",
                "mv data.jsonl data.json",
            ),
            ("3\n", "data.jsonl:1: a row must be a JSON object, this is a number: 3.", "json.dumps(row)"),
            ("null\n", "data.jsonl:1: a row must be a JSON object, this is null: None.", "json.dumps(row)"),
            (GOOD + '{"a": NaN}\n', "data.jsonl:2: NaN in 'a' is not JSON.", "write null"),
            ('{"a": {"b": [1, -Infinity]}}\n', "data.jsonl:1: -Infinity in 'a.b.1' is not JSON.", "write null"),
            (
                '{"a": 1e999}\n',
                "data.jsonl:1: the number in 'a' is beyond float64 and would become Infinity.",
                "write null",
            ),
            (f'{{"a": {"9" * 5000}}}\n', "data.jsonl:1: Exceeds the limit (4300 digits)", "write it as a string"),
            ('{"a": ' + "[" * 101 + "]" * 101 + "}\n", "data.jsonl:1: nested deeper than 100 levels.", "leave it out"),
            ("[" * 100_000 + "\n", "data.jsonl:1: nested deeper than 100 levels.", "leave it out"),
            (
                '{"prompt": "a", "prompt": "b"}\n',
                "data.jsonl:1: the key 'prompt' stands twice in one object; one value would be lost.",
                "rename one",
            ),
            (
                '{"a": "\\ud83d"}\n',
                "data.jsonl:1: \\ud83d is half a surrogate pair: a character was cut in two.",
                "leave the row out",
            ),
            (
                GOOD + '{"a": 1,}\n' + GOOD,
                "data.jsonl:2:9: not JSON: ",
                "json.dumps(row)",
            ),
            ("{'a': 1}\n" + GOOD, "data.jsonl:1:2: not JSON: Expecting property name", "this is a Python dict"),
            ('{\n  "a": 1\n}\n', "data.jsonl:1:2: not JSON: ", "if this is one JSON document: mv data.jsonl data.json"),
            (
                GOOD + '{"a": 1} {"b": 2}\n',
                "data.jsonl:2:10: not JSON: Extra data, at '{\"b\": 2}'.",
                "one JSON object",
            ),
        ],
    )
    def test_refused_with_the_line_and_the_fix(self, tmp_path, content, message, fix):
        """What is not one JSON object a line is refused: where, what, and what to do."""
        text = refusal(written(tmp_path, content))
        assert text.startswith(message)
        assert fix in text.split("Fix:")[1]

    def test_cut_inside_a_character(self, tmp_path):
        """A file that ends inside a multi-byte character is said to be cut off, not wrongly encoded."""
        text = refusal(written(tmp_path, (GOOD + '{"prompt": "caf\u00e9').encode()[:-1]))
        assert text.startswith("data.jsonl:2:16: the file ends inside a character (byte 0xc3 at offset 55): ")

    def test_offset_counts_the_byte_order_mark(self, tmp_path):
        """The offset is the byte's place in the file, as a hex viewer shows it."""
        content = b'\xef\xbb\xbf{"a": "\xff"}\n'
        offset = content.index(b"\xff")
        assert f"byte 0xff at offset {offset} " in refusal(written(tmp_path, content))

    def test_a_secret_near_the_error_is_not_shown(self, tmp_path):
        """An error that quotes the data hides tokens in it."""
        text = refusal(written(tmp_path, '["hf_abcdefghijklmnopqrstuvwx"]\n'))
        assert "['***']" in text
        assert "hf_" not in text


class TestGzip:
    def test_is_unpacked_while_it_is_read(self, tmp_path):
        """A .jsonl.gz reads like the file inside."""
        rows = read(written(tmp_path, gzip.compress(GOOD.encode() * 3), "data.jsonl.gz"))
        assert [1, 2, 3] == rows.lines

    def test_cut_off(self, tmp_path):
        """A gzip that was cut off is refused and says after which line, not read short."""
        whole = gzip.compress("".join(f'{{"n": "{os.urandom(9).hex()}"}}\n' for _ in range(2000)).encode())
        text = refusal(written(tmp_path, whole[: len(whole) // 2], "data.jsonl.gz"))
        assert text.startswith("data.jsonl.gz: the gzip stream is damaged after line ")
        assert "gzip -t" in text

    def test_not_gzip(self, tmp_path):
        """Plain text named .gz is refused with how to see it."""
        text = refusal(written(tmp_path, GOOD, "data.jsonl.gz"))
        assert text.startswith("data.jsonl.gz: the gzip stream is damaged after line 0: Not a gzipped file")

    def test_compressed_twice(self, tmp_path):
        """A gzip inside a gzip is named for what it is."""
        text = refusal(written(tmp_path, gzip.compress(gzip.compress(GOOD.encode())), "data.jsonl.gz"))
        assert text.startswith("data.jsonl.gz is compressed twice.")

    def test_a_bad_byte_inside(self, tmp_path):
        """The fix for a bad byte unpacks first."""
        text = refusal(written(tmp_path, gzip.compress(b'{"a": "\xe9"}\n'), "data.jsonl.gz"))
        assert "byte 0xe9 at offset 7 is not UTF-8" in text
        assert "gzip -dc" in text
        assert "| iconv -f WINDOWS-1252 -t UTF-8 >" in text


class TestJson:
    def test_an_array_with_the_line_of_each_object(self, tmp_path):
        """The objects of an array are rows; a row's line is where its object begins."""
        rows = read(written(tmp_path, '[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n', "data.json"))
        assert [{"a": 1}, {"a": 2}, {"a": 3}] == list(rows)
        assert [2, 4, 5] == rows.lines

    def test_json_lines_under_another_name(self, tmp_path):
        """One object a line in a .json file is read as JSON Lines."""
        assert [1, 2] == read(written(tmp_path, GOOD * 2, "data.json")).lines
        assert [1] == read(written(tmp_path, GOOD, "data.json")).lines

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('[{"a": 1}, {"a": ', "data.json:1:18: not JSON: Expecting value: the file was probably cut off."),
            ('[{"a": 1}, {"a": "b', "data.json:1:18: not JSON: Unterminated string starting at: the file was"),
            ('[{"a": 1}', "data.json:1:10: not JSON: Expecting ',' or ']': the file was probably cut off."),
            ('[{"a": 1}\n{"a": 2}]', "data.json:2:1: not JSON: Expecting ',' or ']'."),
            ('[{"a": 1},]', "data.json:1:11: not JSON: Expecting value."),
            ('[{"a": 1}]\n[]', "data.json: text follows the end of the array: '[]'."),
            ('[\n{"a": 1},\n4]', "data.json:3: item 2 of the array must be an object, this is a number."),
            ('[\n{"a": NaN}]', "data.json:2: NaN in 'a' is not JSON."),
            ("[]", "data.json holds an empty list."),
            (" \n", "data.json holds only blank lines."),
            ("[" * 100_000, "data.json:1: nested deeper than 100 levels."),
            ('"text"', "data.json:1: a row must be a JSON object, this is a string: 'text'."),
        ],
    )
    def test_refused(self, tmp_path, content, message):
        """A .json file that is no array of objects is refused, with the line."""
        assert refusal(written(tmp_path, content, "data.json")).startswith(message)

    def test_rows_inside_an_object(self, tmp_path):
        """An object that holds the list of rows gets the call that reads it."""
        text = refusal(written(tmp_path, '{"version": 1,\n "data": [{"a": 1}]}', "data.json"))
        assert text.startswith("data.json holds one JSON object, not a list of rows; its keys: version, data.")
        assert 'data.json"))["data"])' in text


class TestCsv:
    def test_strings_stay_strings(self, tmp_path):
        """`NA`, `null`, numbers, dates and empty fields are the text that stands there."""
        rows = read(written(tmp_path, "a,b\nNA,null\n007,\n2024-01-01,None\n", "data.csv"))
        assert [["NA", "null"], ["007", ""], ["2024-01-01", "None"]] == [list(row.values()) for row in rows]
        assert [2, 3, 4] == rows.lines

    def test_quoted_fields_and_their_lines(self, tmp_path):
        """A field in quotes may hold commas, quotes and line ends; the row's line is where it begins."""
        content = '\ufeffprompt,completion\r\n"a, ""b""\r\nc",d\r\n\r\ne,f\r\n'
        rows = read(written(tmp_path, content, "data.csv"))
        assert [{"prompt": 'a, "b"\r\nc', "completion": "d"}, {"prompt": "e", "completion": "f"}] == list(rows)
        assert [2, 5] == rows.lines

    def test_tab_separated_and_compressed(self, tmp_path):
        """A .tsv is separated by tabs; .gz of it is unpacked; another delimiter is said."""
        assert {"a": "1", "b": "2,3"} == read(written(tmp_path, "a\tb\n1\t2,3\n", "data.tsv"))[0]
        packed = written(tmp_path, gzip.compress(b"a;b\n1;2\n"), "data.csv.gz")
        assert {"a": "1", "b": "2"} == read(packed, delimiter=";")[0]

    def test_one_column(self, tmp_path):
        """A file of one column is fine when its header holds no other delimiter."""
        assert {"text": "hello"} == read(written(tmp_path, "text\nhello\n", "data.csv"))[0]

    def test_a_large_field(self, tmp_path):
        """A field beyond the csv module's 128 kB default is read, and that default is left as it was."""
        before = csv.field_size_limit(131_072)
        try:
            assert 200_000 == len(read(written(tmp_path, f"text\n{'x' * 200_000}\n", "data.csv"))[0]["text"])
            assert 131_072 == csv.field_size_limit()
        finally:
            csv.field_size_limit(before)

    @pytest.mark.parametrize(
        ("content", "message", "fix"),
        [
            (b"", "data.csv is empty (0 bytes).", "make it again"),
            (b"\n\n", "data.csv holds only blank lines.", "head -c 200"),
            (b"a,b\n", "data.csv has a header and no rows.", "make it again"),
            (b"a,b\n1,2\n\n3\n", "data.csv:4: 1 fields where the header has 2 (a, b).", "in double quotes"),
            (b"a,b\n1,2,3\n", "data.csv:2: 3 fields where the header has 2 (a, b).", "in double quotes"),
            (b"a,b,a\n1,2,3\n", "data.csv:1: the header names 'a' twice; one column would be lost.", "rename one"),
            (b",a\n0,1\n", "data.csv:1: column 1 of 2 has no name.", "index=False"),
            (b"a;b\n1;2\n", "data.csv:1: with delimiter ',' the header is one column: 'a;b'.", 'delimiter=";")'),
            (b'a,b\n1,2\n"3,4\n', "data.csv:3: not CSV: unexpected end of data.", "was opened and not closed"),
            (b"a,b\n1,caf\xe9\n", "data.csv:2:6: byte 0xe9 at offset 9 is not UTF-8", "> data.utf8.csv"),
        ],
    )
    def test_refused_with_the_line_and_the_fix(self, tmp_path, content, message, fix):
        """A table that would be read wrongly is refused: where, what, and what to do."""
        text = refusal(written(tmp_path, content, "data.csv"))
        assert text.startswith(message)
        assert fix.replace('"', "'") in text.split("Fix:")[1].replace('"', "'")


class TestParquet:
    def test_rows_are_numbered(self, tmp_path):
        """Nested values come back as they were written; rows are counted from 1."""
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        value = [{"messages": [{"role": "user", "content": "NA"}], "n": number} for number in range(3)]
        pq.write_table(pa.Table.from_pylist(value), tmp_path / "data.parquet")
        rows = read(tmp_path / "data.parquet")
        assert value == list(rows)
        assert f"{tmp_path / 'data.parquet'}, row 3" == rows.where(2)
        assert value[:2] == list(read(tmp_path / "data.parquet", limit=2))

    def test_cut_off(self, tmp_path):
        """A Parquet file without its end is refused by name."""
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([{"a": 1}]), tmp_path / "whole.parquet")
        whole = (tmp_path / "whole.parquet").read_bytes()
        text = refusal(written(tmp_path, whole[:-6], "data.parquet"))
        assert text.startswith("data.parquet cannot be read as Parquet: ")
        assert "fetched again" in text


class TestObjects:
    def test_a_list(self):
        """A list of dictionaries is read as it is and counted in rows."""
        rows = read([{"a": 1}, {"a": 2}])
        assert ("list", "row", [1, 2]) == (rows.source, rows.unit, rows.lines)

    def test_a_dataset_there_and_back(self):
        """A datasets.Dataset gives its rows, and Rows give one with every column of every row."""
        datasets = pytest.importorskip("datasets")
        value = [{"prompt": "Hi", "completion": "Hello"}, {"prompt": "Bye", "completion": "See you", "id": "b"}]
        back = read(value).to_dataset()
        assert isinstance(back, datasets.Dataset)
        assert ["prompt", "completion", "id"] == back.column_names
        rows = read(back)
        assert [{**value[0], "id": None}, value[1]] == list(rows)
        assert "dataset, row 2" == rows.where(1)

    def test_a_dataset_dict(self):
        """Splits of a DatasetDict are named, so that one is chosen."""
        datasets = pytest.importorskip("datasets")
        both = datasets.DatasetDict(train=datasets.Dataset.from_dict({"a": [1]}))
        text = refusal(both)
        assert text.startswith("A DatasetDict holds several splits: train.")
        assert 'read(dataset["train"])' in text

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ([], "The list is empty."),
            ([{"a": 1}, "b"], "list, row 2: a row must be a dictionary, this is str."),
            ({"a": [1]}, "Rows are read from a path, a datasets.Dataset or a list of dictionaries, not from dict."),
        ],
    )
    def test_refused(self, source, message):
        """What is no list of dictionaries is refused by its type."""
        assert refusal(source).startswith(message)


class TestPlaces:
    def test_limit(self, tmp_path):
        """Reading stops after `limit` rows; what is behind them is not looked at."""
        path = written(tmp_path, GOOD * 2 + "broken")
        assert 2 == len(read(path, limit=2))
        assert 0 == len(read(path, limit=0))
        assert 1 == len(read(read(path, limit=2), limit=1))
        assert refusal(path, limit=-1).startswith("limit must be 0 or more, not -1.")

    def test_a_missing_file(self, tmp_path):
        """A wrong name is answered with the closest one beside it."""
        written(tmp_path, GOOD, "tickets.jsonl")
        text = refusal(tmp_path / "ticket.jsonl")
        assert text.startswith("There is no file ticket.jsonl; did you mean tickets.jsonl?\n")

    def test_an_unknown_ending(self, tmp_path):
        """A file is read by its ending; an unknown one is answered with those that are known."""
        text = refusal(written(tmp_path, GOOD, "data.txt"))
        assert text.startswith("data.txt: .txt is not one of .jsonl, .json, .csv, .tsv, .parquet")

    def test_a_folder(self, tmp_path):
        """A folder is answered with the files in it that can be read."""
        written(tmp_path, GOOD)
        with pytest.raises(DataError, match=r"is a folder; it holds data\.jsonl"):
            read(tmp_path)

    def test_no_permission(self, tmp_path):
        """A file that may not be read is an error that says so, not a traceback."""
        path = written(tmp_path, GOOD)
        path.chmod(0)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)  # root may read anything
        try:
            with pytest.raises(DataError, match=r"No permission to read .*data\.jsonl"):
                read(path)
        finally:
            os.seteuid(before)
