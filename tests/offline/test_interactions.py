from pathlib import Path

import pytest

from offline.errors import DataError
from offline.interactions import Interaction, data_files, read_interactions, read_items

HEADER = b"user_id:token\titem_id:token\ttimestamp:float\n"


@pytest.fixture
def inter(tmp_path: Path) -> Path:
    return tmp_path / "toy.inter"


@pytest.fixture
def item(tmp_path: Path) -> Path:
    return tmp_path / "toy.item"


def test_rows_come_in_file_order(inter: Path) -> None:
    inter.write_bytes(HEADER + b"u\tb\t2\nu\ta\t1.5\nv\ta\t1e3\n")
    expected = [Interaction("u", "b", 2.0), Interaction("u", "a", 1.5), Interaction("v", "a", 1000.0)]
    assert read_interactions(inter) == expected


def test_columns_may_stand_in_any_order_beside_others(inter: Path) -> None:
    inter.write_bytes(b"rating:float\ttimestamp:float\tuser_id:token\titem_id:token\n5\t-7\tu\ti\n")
    assert read_interactions(inter) == [Interaction("u", "i", -7.0)]


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"u\ti\t1\n",
        HEADER + b"u\ti\t1",
        (HEADER + b"u\ti\t1\n").replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + HEADER + b"u\ti\t1\n",
        b"\xef\xbb\xbf" + (HEADER + b"u\ti\t1\n").replace(b"\n", b"\r\n"),
    ],
    ids=["plain", "no last newline", "CRLF", "BOM", "BOM and CRLF"],
)
def test_what_editors_make_of_a_file_changes_nothing(inter: Path, content: bytes) -> None:
    inter.write_bytes(content)
    assert read_interactions(inter) == [Interaction("u", "i", 1.0)]


def test_only_tabs_and_newlines_divide(inter: Path) -> None:
    inter.write_bytes(HEADER + 'ü ser\u2028\u0085\x0b\ti, "1"\u3000\t1\n'.encode())
    assert read_interactions(inter) == [Interaction("ü ser\u2028\u0085\x0b", 'i, "1"\u3000', 1.0)]


@pytest.mark.parametrize(
    "row, reason",
    [
        (b"u\ti", "2 fields, the header has 3"),
        (b"u\ti\t1\t1", "4 fields, the header has 3"),
        (b"u i 1", "1 fields, the header has 3"),
        (b"", "the line is empty"),
        (b"\r", "the line is empty"),
        (b"\ti\t1", "user_id is empty"),
        (b"u\t\t1", "item_id is empty"),
        (b"u\ti\t", "timestamp '' is not a number"),
        (b"u\ti\tyesterday", "timestamp 'yesterday' is not a number"),
        (b"u\ti\t1_000", "timestamp '1_000' is not a number"),
        (b"u\ti\t1,5", "timestamp '1,5' is not a number"),
        (b"u\ti\t0x10", "timestamp '0x10' is not a number"),
        (b"u\ti\tnan", "timestamp 'nan' is not finite"),
        (b"u\ti\t-inf", "timestamp '-inf' is not finite"),
        (b"u\ti\tInfinity", "timestamp 'Infinity' is not finite"),
        (b"u\ti\t1e400", "timestamp '1e400' is not finite"),
        (b"u\t\xff\t1", r"not UTF-8 \(invalid start byte at byte 2\)"),
        (b"u\xc3\ti\t1", r"not UTF-8 \(invalid continuation byte at byte 1\)"),
        (b"\xef\xbb\xbfu\xed\xa0\x80\ti\t1", "not UTF-8"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_reason(inter: Path, row: bytes, reason: str) -> None:
    inter.write_bytes(HEADER + b"u\ti\t1\n" + row + b"\nu\ti\t2\n")
    with pytest.raises(DataError, match=rf"toy\.inter, line 3: {reason}"):
        read_interactions(inter)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", r"toy\.inter is empty: expected a header such as user_id:token"),
        (b"\n", "line 1: '' is not column:type"),
        (HEADER, "holds a header and no rows"),
        (b"user_id\titem_id\ttimestamp\nu\ti\t1\n", "line 1: 'user_id' is not column:type"),
        (
            b"user_id:text\titem_id:token\ttimestamp:float\n",
            "line 1: 'user_id:text' is not column:type, as user_id:token, with a type of",
        ),
        (HEADER.replace(b"\t", b","), "line 1: commas and no tab: columns are separated by tabs"),
        (b":token\t" + HEADER, "line 1: ':token' is not column:type"),
        (b"u\ti\t1\n", "line 1: 'u' is not column:type"),
        (b"user_id:token\titem_id:token\n", "line 1: no column timestamp; the header has user_id, item_id"),
        (b"rating:float\n", "line 1: no column user_id, item_id, timestamp; the header has rating"),
        (b"item_id:token\t" + HEADER, "line 1: column item_id stands there twice"),
        (b"x:float\tx:token\t" + HEADER, "line 1: column x stands there twice"),
        (HEADER.decode().encode("utf-16"), r"line 1: not UTF-8 \(invalid start byte at byte 0\)"),
        (HEADER.replace(b"\n", b"\r") + b"u\ti\t1\r", "line 1: 'timestamp:float.*is not column:type"),
    ],
)
def test_a_malformed_file_is_named_with_its_reason(inter: Path, content: bytes, reason: str) -> None:
    inter.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_interactions(inter)


def test_items_by_id_with_all_their_columns(item: Path) -> None:
    item.write_bytes("\ufeffitem_id:token\ttitle:token_seq\tprice:float\r\na\tA\u2028B\t\r\nb\t\t3\r\n".encode())
    assert read_items(item) == {"a": {"title": "A\u2028B", "price": ""}, "b": {"title": "", "price": "3"}}


def test_a_file_of_ids_alone_or_without_rows_holds_no_text(item: Path) -> None:
    item.write_bytes(b"item_id:token\na\nb\n")
    assert read_items(item) == {"a": {}, "b": {}}
    item.write_bytes(b"item_id:token\ttitle:token_seq\n")
    assert read_items(item) == {}


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"item_id:token\ttitle:token_seq\na\tA\nb\tB\na\tC\n", "line 4: item 'a' stands there twice"),
        (b"item_id:token\ttitle:token_seq\n\tA\n", "line 2: item_id is empty"),
        (b"title:token_seq\nA\n", "line 1: no column item_id; the header has title"),
        (b"item_id:token\ttitle:token_seq\na\n", "line 2: 1 fields, the header has 2"),
        (b"item_id:token\ttitle:token_seq\na\t\xe9t\xe9\n", "line 2: not UTF-8"),
        (b"", r"toy\.item is empty"),
    ],
)
def test_malformed_items_are_named(item: Path, content: bytes, reason: str) -> None:
    item.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_items(item)


def test_the_files_of_a_folder(tmp_path: Path, inter: Path, item: Path) -> None:
    inter.touch()
    assert data_files(tmp_path) == (inter, None)
    item.touch()
    (tmp_path / "README.txt").touch()
    assert data_files(tmp_path) == (inter, item)


def test_a_folder_must_be_there_and_hold_one_data_set(tmp_path: Path, inter: Path) -> None:
    with pytest.raises(DataError, match="absent is not a folder: give the folder that holds"):
        data_files(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.inter file: see 'Your own data' in README\.md"):
        data_files(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "toy.inter").touch()
    with pytest.raises(DataError, match=r"holds no \.inter file: is .*below meant\?"):
        data_files(tmp_path)
    inter.touch()
    with pytest.raises(DataError, match=r"toy\.inter is not a folder"):
        data_files(inter)
    (tmp_path / "more.inter").touch()
    with pytest.raises(DataError, match=r"holds 2 \.inter files \(more\.inter, toy\.inter\), expected one"):
        data_files(tmp_path)


def test_texts_under_another_name_are_not_passed_over(tmp_path: Path, inter: Path) -> None:
    inter.touch()
    (tmp_path / "items.item").touch()
    with pytest.raises(DataError, match=r"holds items\.item beside toy\.inter: rename it to toy\.item"):
        data_files(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.inter: No such file"):
        read_interactions(tmp_path / "gone.inter")
    (tmp_path / "folder.item").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*folder\.item: Is a directory"):
        read_items(tmp_path / "folder.item")


@pytest.mark.parametrize("column, row", [("user_id", "{}\ti\t1\n"), ("item_id", "u\t{}\t1\n")])
def test_an_id_that_nobody_could_ask_about_is_refused(inter: Path, column: str, row: str) -> None:
    long = "ä" * 256  # characters, not bytes
    inter.write_bytes(HEADER + row.format(long).encode())
    assert len(read_interactions(inter)) == 1
    inter.write_bytes(HEADER + b"u\ti\t1\n" + row.format(long + "x").encode())
    with pytest.raises(DataError, match=rf"toy\.inter, line 3: {column} has 257 characters, .* up to 256"):
        read_interactions(inter)
