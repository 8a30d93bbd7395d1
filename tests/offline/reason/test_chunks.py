from pathlib import Path

from offline.reason.chunks import Chunk, Chunks


def test_rows_of_one_label_share_chunks_in_their_order(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path / "deep" / "chunks")
    assert chunks.counts is None
    chunks.cut(((number % 2, ["ö", number]) for number in range(7)), 3)
    chunks.finish({"rows": 7})
    assert chunks.counts == {"rows": 7}
    found = [chunks.read(name) for name in chunks.names()]
    assert found == [
        Chunk(0, [["ö", 0], ["ö", 2], ["ö", 4]]),
        Chunk(0, [["ö", 6]]),
        Chunk(1, [["ö", 1], ["ö", 3], ["ö", 5]]),
    ]


def test_a_list_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path)
    chunks.cut([(0, 1), (0, 2), (0, 3)], 1)
    assert Chunks(tmp_path).counts is None
    chunks.cut([(0, 1), (0, 2), (0, 3)], 2)
    assert [row for name in chunks.names() for row in chunks.read(name).rows] == [1, 2, 3]


def test_nothing_to_do_is_a_whole_list_of_no_chunks(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path)
    chunks.cut([], 5)
    chunks.finish({})
    assert chunks.names() == []
    assert chunks.counts == {}


def test_the_first_chunk_of_each_label_is_short(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path / "chunks")
    chunks.cut(((row % 2, row) for row in range(20)), 4, first=2)
    assert [(found.label, len(found.rows)) for found in map(chunks.read, chunks.names())] == [
        *((0, 2), (0, 4), (0, 4)),
        *((1, 2), (1, 4), (1, 4)),
    ]
