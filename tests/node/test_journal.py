"""The journal: a promise that was kept on disk is found again, and damage is told from a tear."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_machines import RECORDS, Add, Vote

from veilgrid.errors import InvariantError, JournalCorrupt, SetupError
from veilgrid.node.journal import Journal
from veilgrid.node.wire import Codec
from veilgrid.secret import Secret

CODEC = Codec(RECORDS)
KEY = Secret(bytes(range(32)))
keys = st.sampled_from([None, KEY])


def written(path: Path, block_sizes: list[int], key: Secret[bytes] | None) -> list[list[Add]]:
    """Write one block of each size; return the records of each block."""
    path.unlink(missing_ok=True)
    journal, blocks, number = Journal.open(path, CODEC, key), [], 0
    for size in block_sizes:
        block = [Add(number + index, 7 * index) for index in range(size)]
        for record in block:
            journal.append(record)
        journal.sync()
        blocks.append(block)
        number += size
    journal.close()
    return blocks


def read(path: Path, key: Secret[bytes] | None) -> list[Add]:
    journal = Journal.open(path, CODEC, key)
    journal.close()
    return list(journal.records)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "j"


sizes = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(block_sizes=sizes, key=keys, data=st.data())
def test_a_journal_cut_anywhere_holds_exactly_the_whole_blocks_before_the_cut(
    path: Path, block_sizes: list[int], key: Secret[bytes] | None, data: st.DataObject
) -> None:
    """A power cut loses at most what nobody was told about."""
    blocks = written(path, block_sizes, key)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    found = read(path, key)
    expected = [record for block in blocks for record in block]
    assert found == expected[: len(found)]
    assert len(found) in [sum(block_sizes[:count]) for count in range(len(blocks) + 1)]
    if cut == len(whole):
        assert found == expected
    assert read(path, key) == found, "the cut tail stays cut"


@given(block_sizes=sizes, key=keys, data=st.data())
def test_a_changed_octet_is_never_taken_for_a_record(
    path: Path, block_sizes: list[int], key: Secret[bytes] | None, data: st.DataObject
) -> None:
    """Damage before the last block is reported; in the last block it looks like a tear."""
    blocks = written(path, block_sizes, key)
    octets = bytearray(path.read_bytes())
    place = data.draw(st.integers(40, len(octets) - 1))
    octets[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(octets)
    expected = [record for block in blocks[:-1] for record in block]
    try:
        found = read(path, key)
    except JournalCorrupt:
        assert len(blocks) > 1
    else:
        assert found == expected, "only the last block may be missing"


def test_a_journal_whose_middle_is_damaged_is_refused_and_left_as_it_is(path: Path) -> None:
    written(path, [1, 1, 1], None)
    octets = bytearray(path.read_bytes())
    octets[45] ^= 1
    path.write_bytes(octets)
    with pytest.raises(JournalCorrupt, match="restore the file"):
        read(path, None)
    assert path.read_bytes() == octets


def test_blocks_cannot_be_dropped_exchanged_or_taken_from_another_journal(
    path: Path, tmp_path: Path
) -> None:
    """Somebody who can write the disk but has no key must not rewrite history unnoticed."""
    written(path, [1, 1, 1], KEY)
    octets = path.read_bytes()
    length = (len(octets) - 40) // 3
    first, second, third = (octets[40 + i * length : 40 + (i + 1) * length] for i in range(3))
    for forged in (second + third, second + first + third, first + third):
        path.write_bytes(octets[:40] + forged)
        with pytest.raises(JournalCorrupt):
            read(path, KEY)
    written(tmp_path / "other", [1, 1, 1], KEY)
    path.write_bytes(octets[:40] + (tmp_path / "other").read_bytes()[40:])
    assert read(path, KEY) == []


@pytest.mark.parametrize("key", [None, KEY])
def test_a_block_of_another_history_of_the_same_journal_does_not_fit(
    path: Path, key: Secret[bytes] | None
) -> None:
    """A torn and rewritten tail leaves two valid blocks for one place; only one has a follower."""
    written(path, [1], key)
    begin = path.read_bytes()

    def goes_on(*amounts: int) -> bytes:
        path.write_bytes(begin)
        journal = Journal.open(path, CODEC, key)
        for amount in amounts:
            journal.append(Add(amount, amount))
            journal.sync()
        journal.close()
        return path.read_bytes()

    one, other = goes_on(1), goes_on(2, 3)
    path.write_bytes(one + other[len(one) :])
    try:
        found = read(path, key)
    except JournalCorrupt:
        return
    assert Add(3, 3) not in found, "what followed another history is not taken up"


def test_an_encrypted_journal_shows_nothing_and_opens_with_its_key_only(tmp_path: Path) -> None:
    secret = 0x1122334455667788
    for key in (None, KEY):
        path = tmp_path / f"j{key is None}"
        journal = Journal.open(path, CODEC, key)
        journal.append(Add(1, secret))
        journal.close()
        assert (secret.to_bytes(8, "big") in path.read_bytes()) == (key is None)
        for wrong in (Secret(bytes(32)), None if key else KEY):
            with pytest.raises(SetupError, match="not the one it was made with"):
                Journal.open(path, CODEC, wrong)
    with pytest.raises(SetupError, match="32 octets"):
        Journal.open(tmp_path / "short", CODEC, Secret(b"short"))


def test_a_journal_has_one_user_at_a_time(tmp_path: Path) -> None:
    """Two processes of one node would both vote."""
    journal = Journal.open(tmp_path / "j", CODEC)
    with pytest.raises(SetupError, match="in use"):
        Journal.open(tmp_path / "j", CODEC)
    journal.close()
    Journal.open(tmp_path / "j", CODEC).close()


def test_a_compacted_journal_holds_the_new_records_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal.open(path, CODEC, KEY)
    for number in range(100):
        journal.append(Add(number, number))
    journal.sync()
    before = path.stat().st_size
    journal.compact([Add(1000, 4950)])
    journal.append(Add(1001, 1))
    journal.close()
    assert path.stat().st_size < before
    assert read(path, KEY) == [Add(1000, 4950), Add(1001, 1)]


def test_records_of_another_kind_are_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", Codec(Vote))
    journal.append(Vote(1, 2))
    journal.close()
    with pytest.raises(JournalCorrupt):
        Journal.open(tmp_path / "j", CODEC)
    (tmp_path / "text").write_text("not a journal, but longer than its header would be")
    with pytest.raises(SetupError, match="not a journal"):
        Journal.open(tmp_path / "text", CODEC)


@contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 4096 octets; only inside, for the test's own report is a file too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_journal_and_what_was_durable_stays(tmp_path: Path) -> None:
    """Going on after a failed write would promise what is not there."""
    journal, number = Journal.open(tmp_path / "j", CODEC), 0

    def fill() -> None:
        nonlocal number
        while True:
            journal.append(Add(number, 1))
            journal.sync()
            number += 1

    with small_disk(), pytest.raises(SetupError, match="cannot be written"):
        fill()
    with pytest.raises(InvariantError, match="reopened"):
        journal.write([b"x"])
    journal.close()
    assert [record.number for record in read(tmp_path / "j", None)] == list(range(number))
