"""DICOM at both ends of the box: DCMTK's storescu on the scanners' side, its storescp on the uplink."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from gateway import PORT, SCANNER_SIDE
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PACS = ("10.99.2.10", 11113)


def study(folder: Path, count: int, rows: int = 512, **values: str) -> list[Path]:
    """A study of CT images; each a file of its own content. `values`: attributes by keyword, e.g. PatientName."""
    folder.mkdir(parents=True, exist_ok=True)
    study_uid, series_uid = generate_uid(), generate_uid()
    paths = []
    for number in range(1, count + 1):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = study_uid, series_uid
        data.PatientID, data.PatientName, data.Modality = "VM1", "Test^Vm", "CT"
        for keyword, value in values.items():
            setattr(data, keyword, value)
        data.InstanceNumber, data.Rows, data.Columns = number, rows, rows
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelData = bytes(range(256)) * (2 * rows * rows // 256 - 1) + number.to_bytes(256, "little")
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{number}.dcm")
        pydicom.dcmwrite(paths[-1], data, enforce_file_format=True)
    return paths


def content(path: Path) -> tuple[str, str]:
    """SOP Instance UID, and the SHA-256 of the data set without the file meta group, which every relay writes anew."""
    raw = path.read_bytes()
    end = 144 + int.from_bytes(raw[140:144], "little")
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID), hashlib.sha256(raw[end:]).hexdigest()


def sender(paths: list[Path], called: str = "DCMGATE") -> list[str]:
    """The command that sends as CT1 and says what became of each; every image has to be acknowledged for status 0."""
    return ["storescu", "-v", "-aet", "CT1", "-aec", called, "-to", "30", SCANNER_SIDE, str(PORT), *map(str, paths)]


def send(paths: list[Path], seconds: float = 120, called: str = "DCMGATE") -> subprocess.CompletedProcess[str]:
    """Send them and wait."""
    return subprocess.run(sender(paths, called), capture_output=True, text=True, timeout=seconds)


@contextmanager
def pacs(folder: Path) -> Iterator[Path]:
    """A PACS on the uplink side; what it got lies in the folder, bit for bit."""
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["storescp", "-aet", "PACS", "+B", "-od", str(folder), "+xa", str(PACS[1])]) as process:
        try:
            yield folder
        finally:
            process.terminate()


def arrived(folder: Path, count: int, seconds: float = 120) -> dict[str, str]:
    """What the PACS has, once it has so many and none of them grows any more; what there is when the time is over."""
    end = time.monotonic() + seconds
    before: dict[Path, int] = {}
    while time.monotonic() < end:
        sizes = {path: path.stat().st_size for path in folder.iterdir()}
        if len(sizes) >= count and sizes == before:
            break
        before = sizes
        time.sleep(0.5)
    return dict(content(path) for path in folder.iterdir())
