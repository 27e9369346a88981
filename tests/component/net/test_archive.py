"""The archive folder: durable before it says so, found again by its digest, and never made by accident."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from blake3 import blake3

from appliance.dicom import uids
from appliance.dicom.part10 import parse_head
from appliance.errors import UsageError
from appliance.model import Custody, Source
from appliance.net import archive
from appliance.net.archive import Archive, ArchiveMissing


def custody(data: bytes, number: int = 7, uid: bytes = b"1.2.3.4") -> Custody:
    return Custody(number, 1, 2, 3, uids.CT_IMAGE_STORAGE.encode(), uid, uids.EXPLICIT_LE, len(data), blake3(data).digest(),
                   Source(listener="main", calling="CT1", called="GATE", address="127.0.0.1"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    archive.init(tmp_path / "archive")
    return tmp_path / "archive"


def test_init(tmp_path: Path):
    path = tmp_path / "a" / "b"
    identity = archive.init(path)
    with Archive(path) as opened:
        assert opened.uuid == identity
    assert len(list((path / "objects").iterdir())) == 256
    with pytest.raises(UsageError, match="already"):
        archive.init(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").touch()
    with pytest.raises(UsageError, match=r"holiday\.jpg") as caught:
        archive.init(tmp_path / "other")
    assert caught.value.mend
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    archive.init(tmp_path / "disk")


@pytest.mark.requirement("a folder without its marker is never written into")
def test_a_folder_without_its_marker_is_not_there(tmp_path: Path, path: Path):
    for missing in (tmp_path / "nowhere", tmp_path, path / archive.MARKER):
        with pytest.raises(ArchiveMissing):
            Archive(missing)
    for text in ("", "[]", '{"format": 2, "uuid": "x"}', "\0\xff", '{"uuid": "x"}'):
        (path / archive.MARKER).write_text(text)
        with pytest.raises(ArchiveMissing):
            Archive(path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ArchiveMissing):
            Archive(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_write_and_read_back(path: Path):
    data = bytes.fromhex("0800180055490800") + b"1.2.3.4\0" + os.urandom(100) * 0
    with Archive(path) as opened:
        reference = opened.write(custody(data), [data[:5], memoryview(data)[5:]])
        assert reference == f"objects/{blake3(data).hexdigest()[:2]}/{blake3(data).hexdigest()}.dcm"
        assert opened.read_back(reference) == blake3(data).digest()
    raw = (path / reference).read_bytes()
    assert parse_head(raw[:4096]) == custody(data)
    assert raw[4096:] == data
    assert pydicom.dcmread(path / reference).SOPInstanceUID == "1.2.3.4"
    assert list((path / "incoming").iterdir()) == []
    assert [json.loads(line)["reference"] for line in (path / archive.INDEX).read_text().splitlines()] == [reference]


@pytest.mark.requirement("hazard: UID ../../x, /etc/cron.d/x, $(id), NUL")
@pytest.mark.parametrize("uid", [b"../../../../tmp/x", b"/etc/cron.d/x", b"$(id)", b"a\nb\0c", b"1" * 80])
def test_no_byte_of_a_peer_is_part_of_a_path(path: Path, uid: bytes):
    before = {str(p) for p in path.rglob("*")}
    with Archive(path) as opened:
        reference = opened.write(custody(b"x" + uid, uid=uid), [b"x" + uid])
    assert {str(p) for p in path.rglob("*")} - before == {str(path / reference), str(path / archive.INDEX)}
    (line,) = (path / archive.INDEX).read_text().splitlines()
    assert json.loads(line)["instance"] == custody(b"", uid=uid).uid_text


def test_what_ends_in_an_error_is_no_object(path: Path):
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyError("damaged")
    data = b"half and the other half"
    with Archive(path) as opened:
        with pytest.raises(KeyError):
            opened.write(custody(data), broken())
        assert list(path.glob("objects/*/*")) == []
        assert [p.stat().st_size for p in (path / "incoming").iterdir()] == [0]
        reference = opened.write(custody(data), [data])
        assert opened.read_back(reference) == blake3(data).digest()
    assert list((path / "incoming").iterdir()) == []


def test_read_back_tells_what_the_disk_has(path: Path):
    data = bytes(3_000_000)
    with Archive(path) as opened:
        reference = opened.write(custody(data), [data])
        file = path / reference
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + b"\1")
        assert opened.read_back(reference) == blake3(data[:-1] + b"\1").digest()
        for wrong in (whole[:-1], whole + b"\0", b"", whole[:100], b"\1" + whole[1:]):
            file.write_bytes(wrong)
            assert opened.read_back(reference) is None
        file.unlink()
        assert opened.read_back(reference) is None
        for text in ("", "../x", "objects/../DCMGATE-ARCHIVE", reference + "/..", reference.replace("objects/", "objects/x"),
                     f"objects/ff/{'0' * 64}.dcm", reference + "\n"):
            with pytest.raises(ValueError, match="no reference"):
                opened.read_back(text)


def test_the_same_data_set_again_replaces_its_file(path: Path):
    with Archive(path) as opened:
        first = opened.write(custody(b"data", 1), [b"data"])
        (path / first).write_bytes(b"rotten")
        assert opened.write(custody(b"data", 2), [b"data"]) == first
        assert opened.read_back(first) == blake3(b"data").digest()
    assert len((path / archive.INDEX).read_text().splitlines()) == 2


def test_a_torn_line_of_the_index_does_not_spoil_the_next(path: Path):
    (path / archive.INDEX).write_text('{"reference":"objects/a')
    with Archive(path) as opened:
        opened.write(custody(b"data"), [b"data"])
    torn, whole = (path / archive.INDEX).read_text().splitlines()
    assert json.loads(whole)["length"] == 4
    assert torn == '{"reference":"objects/a'


@pytest.mark.requirement("I1")
def test_everything_is_synced_in_the_right_order(path: Path, monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []

    def noted(name: str, real: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            first = args[0]
            target = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(args[1])
            log.append(f"{name} {Path(target).relative_to(path) if target.startswith('/') else target}")
            return real(*args, **kwargs)  # type: ignore[operator]
        return call
    with Archive(path) as opened:
        for name in ("fsync", "fdatasync", "rename"):
            monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
        reference = opened.write(custody(b"data"), [b"data"])
    digest = blake3(b"data").hexdigest()
    assert log == [f"fsync incoming/{7:016x}-{digest[:16]}.part", f"rename {reference}", f"fsync objects/{digest[:2]}",
                   f"fdatasync {archive.INDEX}"]


def test_an_error_of_the_disk_goes_through(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with Archive(path) as opened, pytest.raises(OSError, match="No space"):
        opened.write(custody(b"data"), [b"data"])
    assert list(path.glob("objects/*/*")) == []
