"""Reading back: the last bytes of a damaged object are never given out (I5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from appliance.dicom.part10 import HEAD
from appliance.errors import ObjectDamaged, SpoolFault
from appliance.model import Custody
from appliance.spool import reader
from appliance.spool.layout import Spool
from appliance.spool.reader import ObjectReader, expect, verify
from tests.support.disk import FaultyOs
from tests.support.spools import accept, fresh, intake_of

DATA = os.urandom(1_000_003)


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return fresh(tmp_path_factory.mktemp("reader") / "spool")


@pytest.fixture
def custody(spool: Spool) -> Iterator[Custody]:
    with intake_of(spool, ready=4) as intake:
        yield accept(intake, DATA)


def given(spool: Spool, number: int, size: int = 131072) -> tuple[bytes, str]:
    """What the reader gave out, and why it stopped."""
    got = bytearray()
    try:
        with ObjectReader(spool, number) as opened:
            for chunk in opened.chunks(size):
                assert len(chunk) <= size
                got += chunk
    except ObjectDamaged as e:
        return bytes(got), str(e)
    return bytes(got), ""


@pytest.mark.parametrize("size", [4096, 100_000, 131072, 1_000_002, 1_000_003, 1_000_004, 1 << 22])
def test_the_whole_object(spool: Spool, custody: Custody, size: int) -> None:
    assert given(spool, custody.number, size) == (DATA, "")
    assert verify(spool, custody.number, custody) == custody


@pytest.mark.parametrize("length", [0, 1, 131072, 262144])
def test_lengths(spool: Spool, length: int) -> None:
    with intake_of(spool, ready=4) as intake:
        number = accept(intake, DATA[:length]).number
    assert given(spool, number) == (DATA[:length], "")


def test_another_pass_over_the_same_object(spool: Spool, custody: Custody) -> None:
    with ObjectReader(spool, custody.number, custody) as opened:
        assert b"".join(bytes(c) for c in opened.chunks()) == b"".join(bytes(c) for c in opened.chunks(1000)) == DATA


@pytest.mark.requirement("I5")
@pytest.mark.parametrize("at", [0, 500_000, 1_000_002])
def test_a_flipped_bit_holds_the_last_bytes_back(spool: Spool, custody: Custody, at: int) -> None:
    path = spool.object_path(custody.number)
    with open(path, "r+b") as stream:
        stream.seek(HEAD + at)
        stream.write(bytes([DATA[at] ^ 4]))
    got, why = given(spool, custody.number)
    assert "digest" in why and len(got) == 1_000_003 // 131072 * 131072
    with pytest.raises(ObjectDamaged, match="digest"):
        verify(spool, custody.number)


@pytest.mark.requirement("I5")
def test_what_cannot_be_the_object_is_not_even_begun(spool: Spool, custody: Custody) -> None:
    path = spool.object_path(custody.number)
    os.truncate(path, HEAD + len(DATA) - 1)
    assert given(spool, custody.number)[0] == b""
    os.truncate(path, HEAD + len(DATA) + 1)
    assert "data set" in given(spool, custody.number)[1]
    os.truncate(path, 100)
    assert "head" in given(spool, custody.number)[1]
    path.unlink()
    assert "No such file" in given(spool, custody.number)[1]


@pytest.mark.requirement("I5")
def test_an_object_under_another_number_is_damage(spool: Spool, custody: Custody) -> None:
    os.rename(spool.object_path(custody.number), spool.object_path(1 << 40))
    assert "its head is that of" in given(spool, 1 << 40)[1]


@pytest.mark.requirement("I5")
def test_a_swapped_object_does_not_pass_for_what_the_ledger_knows(spool: Spool, custody: Custody) -> None:
    with pytest.raises(ObjectDamaged, match="not the one that was acknowledged"):
        verify(spool, custody.number, replace(custody, digest=bytes(32)))
    with pytest.raises(ObjectDamaged, match="not the one that was acknowledged"):
        verify(spool, custody.number, replace(custody, sop_instance=b"9.9"))


@pytest.mark.parametrize(("code", "error"), [(errno.EIO, ObjectDamaged), (errno.EMFILE, SpoolFault),
                                             (errno.ENOMEM, SpoolFault)])
@pytest.mark.parametrize("call", ["pread", "preadv", "fstat"])
def test_an_error_is_the_object_s_or_ours(spool: Spool, custody: Custody, monkeypatch: pytest.MonkeyPatch, call: str, code: int,
                                          error: type[Exception]) -> None:
    faulty = FaultyOs()
    faulty.fail(call, code)
    monkeypatch.setattr(reader, "os", faulty)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error):
        verify(spool, custody.number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_cut_while_it_is_read(spool: Spool, custody: Custody) -> None:
    with ObjectReader(spool, custody.number) as opened:
        chunks = opened.chunks(4096)
        next(chunks)
        os.truncate(spool.object_path(custody.number), HEAD + 8192)
        with pytest.raises(ObjectDamaged, match="ends after 8192"):
            list(chunks)


def test_an_object_that_is_expected_is_fetched_ahead(spool: Spool, custody: Custody, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyOs("close")
    asked: list[tuple[int, int, int]] = []
    disk.stand_in("posix_fadvise", lambda fd, start, length, advice: asked.append((start, length, advice)))
    monkeypatch.setattr(reader, "os", disk)
    expect(spool, custody.number)
    assert asked == [(0, reader.AHEAD, os.POSIX_FADV_WILLNEED)]
    assert disk.names()[-1] == "close"


def test_an_object_that_is_not_there_is_expected_without_harm(spool: Spool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    expect(spool, 1 << 40)
    assert len(os.listdir("/proc/self/fd")) == before
