"""The head of a spooled object: whole, cheap, readable by others, and strict towards any bytes."""

from __future__ import annotations

import io
import random
from binascii import crc32
from dataclasses import replace

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dicom import part10
from appliance.errors import DcmgateError, HeadError
from appliance.model import Custody, Source

SOURCE = Source(listener="scanners", calling="CT1", called="DCMGATE",
                raw_calling=b"CT1             ", raw_called=b"DCMGATE         ", address="192.0.2.7",
                port=11112, peer="ct-1", certificate="ab" * 32, implementation="OFFIS_DCMTK_367")
CUSTODY = Custody(number=0x1234, boot=3, since_boot=987654321, wall=1_800_000_000_000_000_000,
                  sop_class=b"1.2.840.10008.5.1.4.1.1.2",
                  sop_instance=b"1.2.826.0.1.3680043.2.1", transfer_syntax="1.2.840.10008.1.2.1", length=4711,
                  digest=bytes(range(32)), source=SOURCE)

raw = st.binary(max_size=part10.MAX_RAW_UID)
text = st.text(max_size=24)
custodies = st.builds(
    Custody, number=st.integers(1, 2 ** 63 - 1), boot=st.integers(0, 2 ** 40), since_boot=st.integers(0, 2 ** 63 - 1),
    wall=st.integers(-2 ** 62, 2 ** 63 - 1), sop_class=raw, sop_instance=raw,
    transfer_syntax=st.from_regex(r"[0-9.]{0,64}", fullmatch=True), length=st.integers(0, 2 ** 63 - 1),
    digest=st.binary(min_size=32, max_size=32),
    source=st.builds(Source, listener=text, calling=st.text(max_size=16), called=st.text(max_size=16),
                     raw_calling=st.binary(max_size=16), raw_called=st.binary(max_size=16), address=st.ip_addresses().map(str),
                     port=st.integers(0, 65535), peer=text, certificate=st.just("0f" * 32),
                     implementation=st.text(max_size=16)))


@given(custodies)
def test_any_custody_comes_back_whole(custody: Custody) -> None:
    head = part10.build_head(custody)
    assert len(head) == part10.HEAD
    assert head.startswith(bytes(128) + b"DICM")
    assert part10.parse_head(head) == custody


@pytest.mark.requirement("conformance: Part 10")
@given(custodies)
def test_any_head_is_read_by_pydicom(custody: Custody) -> None:
    ds = pydicom.dcmread(io.BytesIO(part10.build_head(custody)), force=False)
    assert ds.file_meta.FileMetaInformationGroupLength == part10.HEAD - 144
    for uid in (ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID, ds.file_meta.TransferSyntaxUID):
        assert part10.is_uid(uid.encode())
    assert ds.file_meta.PrivateInformationCreatorUID == part10.PRIVATE_CREATOR


def test_standard_elements() -> None:
    ds = pydicom.dcmread(io.BytesIO(part10.build_head(CUSTODY)))
    meta = ds.file_meta
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.MediaStorageSOPInstanceUID == "1.2.826.0.1.3680043.2.1"
    assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert meta.ImplementationVersionName == "DCMGATE_0_1"
    assert (meta.SourceApplicationEntityTitle, meta.SendingApplicationEntityTitle) == ("CT1", "CT1")
    assert meta.ReceivingApplicationEntityTitle == "DCMGATE"
    assert meta.SourcePresentationAddress == "dicom://192.0.2.7"
    assert [e.tag for e in meta] == sorted(e.tag for e in meta)


@pytest.mark.parametrize("uid", [b"", b"../../x", b"/etc/cron.d/x", b"$(id)", b"1.2\x00.3", b"1" * 65, b"1.02", b"\xff" * 512])
@pytest.mark.requirement("hazard: UID that breaks the rules")
def test_bad_uid_gets_a_placeholder_and_is_kept_as_received(uid: bytes) -> None:
    custody = replace(CUSTODY, sop_instance=uid, sop_class=uid)
    head = part10.build_head(custody)
    meta = pydicom.dcmread(io.BytesIO(head)).file_meta
    assert meta.MediaStorageSOPInstanceUID == part10.placeholder_uid(CUSTODY.digest)
    assert meta.MediaStorageSOPInstanceUID.startswith("2.25.")
    assert part10.is_uid(meta.MediaStorageSOPInstanceUID.encode())
    assert meta.MediaStorageSOPClassUID == part10.UNKNOWN_CLASS
    assert part10.parse_head(head) == custody


@pytest.mark.requirement("conformance: Part 10")
@pytest.mark.requirement("CVE-2019-11687")
def test_preamble_is_zero_whatever_the_peer_said() -> None:
    head = part10.build_head(replace(CUSTODY, sop_instance=b"MZ\x90\x00", source=replace(SOURCE, raw_calling=b"MZ" * 8)))
    assert head[:128] == bytes(128)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HeadError):
        part10.build_head(replace(CUSTODY, sop_instance=b"\xff" * 16384))


def test_every_flipped_bit_is_noticed() -> None:
    head = part10.build_head(CUSTODY)
    chooser = random.Random(1)
    for place in [*range(132, 900, 7), *range(4080, 4096), *(chooser.randrange(4096) for _ in range(300))]:
        bad = bytearray(head)
        bad[place] ^= 1 << chooser.randrange(8)
        with pytest.raises(HeadError):
            part10.parse_head(bad)


@given(st.binary(max_size=5000))
def test_any_bytes_raise_head_error_only(data: bytes) -> None:
    with pytest.raises(HeadError):
        part10.parse_head(data)


def with_crc(head: bytes) -> bytes:
    """The head with a CRC that is right, so that what lies behind the CRC is tested too."""
    return head[:-4] + crc32(head[:-4] + bytes(4)).to_bytes(4, "little")


@given(st.integers(132, 4091), st.binary(min_size=1, max_size=64))
def test_any_damage_behind_a_good_crc_raises_head_error_only(at: int, junk: bytes) -> None:
    head = part10.build_head(CUSTODY)
    try:
        part10.parse_head(with_crc((head[:at] + junk + head[at + len(junk):])[:part10.HEAD]))
    except HeadError:
        pass
    except DcmgateError as e:
        pytest.fail(f"{type(e)}")


@pytest.mark.parametrize("record", [
    b"[" * 3000, b"{}", b"[]", b"null", b'{"v":2}', b'{"v":1}', b"9" * 3000, b"\xff\xfe", b"", b'{"v":1,"v":',
])
def test_any_record_behind_a_good_crc_raises_head_error_only(record: bytes) -> None:
    head = part10.build_head(CUSTODY)
    start = head.index(b'{"v"')
    with pytest.raises(HeadError):
        part10.parse_head(with_crc(head[:start] + record.ljust(4096 - start, b"\0")))


def test_blank() -> None:
    assert part10.is_blank(b"")
    assert part10.is_blank(bytes(4096))
    assert part10.is_blank(bytes(100))
    assert part10.is_blank(memoryview(bytes(8192)))
    assert not part10.is_blank(bytes(4095) + b"\1")
    assert not part10.is_blank(bytes(8191) + b"\1")
    assert not part10.is_blank(part10.build_head(CUSTODY))
