"""Part 10 files of others: as pydicom reads them, and nothing but FormatError for what is none."""

from __future__ import annotations

import struct
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.cli.files import find, look
from appliance.errors import FormatError
from tests.support.objects import bundled


def test_every_bundled_file_is_read_as_pydicom_reads_it() -> None:
    assert len(bundled()) > 100
    for entry in bundled():
        found = look(entry.path)
        meta = pydicom.filereader.read_file_meta_info(entry.path)
        assert found.sop_class.decode() == meta.MediaStorageSOPClassUID
        assert found.sop_instance.decode() == meta.MediaStorageSOPInstanceUID
        assert found.syntax == meta.TransferSyntaxUID
        assert found.offset == entry.offset and found.offset + found.length == entry.path.stat().st_size


def test_folders_are_searched_in_order_and_other_files_left_out(tmp_path: Path) -> None:
    ct = Path(str(pydicom.data.get_testdata_file("CT_small.dcm"))).read_bytes()
    directory = next(e.path for e in bundled() if e.sop_class == "1.2.840.10008.1.3.10").read_bytes()
    (tmp_path / "b").mkdir()
    for name, data in (("b/2.dcm", ct), ("1.dcm", ct), ("notes.txt", b"x"), ("empty", b""), ("DICOMDIR", directory)):
        (tmp_path / name).write_bytes(data)
    found = [(path.name, file is not None) for path, file in find([str(tmp_path)])]
    assert found == [("1.dcm", True), ("DICOMDIR", False), ("2.dcm", True), ("empty", False), ("notes.txt", False)]
    with pytest.raises(FileNotFoundError):
        list(find([str(tmp_path / "missing")]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.lists(st.builds(
    lambda n, vr, value, lie: struct.pack("<HH2sH", 2, n, vr, (len(value) + lie) & 0xFFFF) + value,
    st.sampled_from([0, 1, 2, 3, 0x10, 0x102]), st.sampled_from([b"UI", b"UL", b"OB", b"UN", b"\0\0"]), st.binary(max_size=12),
    st.sampled_from([0, 0, 0, 1, 60000])), max_size=6).map(b"".join))
def test_any_bytes_are_a_file_or_a_format_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(128) + b"DICM" + data)
    try:
        found = look(path)
    except FormatError as e:
        assert e.message
    else:
        assert found.offset + found.length == 132 + len(data)
