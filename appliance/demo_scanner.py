"""The simulated scanner of `make run`: sends pydicom's bundled files and a synthetic CT through pynetdicom.

Not part of the gateway: it speaks to it as any scanner does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

SLICES = 300
FIRST_PART = 100
"""Slices that are sent before the archive is taken away."""

TITLE = "DCMGATE"
SIDE = 512

TRIES = 10
"""Associations for one batch of objects."""

ANSWER_SECONDS = 10.0
"""Longest wait for the answer to one object."""


class NotSent(Exception):
    """The gateway did not take what the scanner has."""


class Scanner:
    """A simulated scanner: sends pydicom's files, then a CT, and waits in the middle until it may go on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent = 0
        self.refused = 0
        self.error: Exception | None = None
        self.half_way = threading.Event()
        self.may_go_on = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._send(bundled_files())
            volume = synthetic_ct(SLICES)
            self._send([next(volume) for _ in range(FIRST_PART)])
            self.half_way.set()
            self.may_go_on.wait()
            self._send(list(volume))
        except Exception as error:  # noqa: BLE001  top of the scanner's thread: shown by whoever watches it
            self.error = error
        finally:
            self.half_way.set()

    def _send(self, objects: Sequence[Path | Dataset]) -> None:
        """Everything, over as few associations as it takes; anything but success is counted.

        An object without an answer is sent again, as a scanner does. pynetdicom 3.0.4 can lose an answer: its reactor
        thread may take it off the queue between two calls of send_c_store.
        """
        left = deque(objects)
        for _ in range(TRIES):
            self._send_some(left)
            if not left:
                return
        raise NotSent("the gateway ended the association")

    def _send_some(self, left: deque[Path | Dataset]) -> None:
        """Over one association, until all are sent or one has no answer."""
        from pynetdicom import AE
        entity = AE(ae_title="DEMO_SCANNER")
        entity.dimse_timeout = ANSWER_SECONDS
        for context in dict.fromkeys(_context(entry) for entry in left):
            entity.add_requested_context(*context)
        association = entity.associate("127.0.0.1", self._port, ae_title=TITLE)
        if not association.is_established:
            raise NotSent(f"the gateway does not accept an association on port {self._port}")
        try:
            while left:
                status = association.send_c_store(left[0])
                if "Status" not in status:
                    return
                left.popleft()
                self.sent += 1
                self.refused += status.Status != 0
        finally:
            association.release()


def _context(entry: Path | Dataset) -> tuple[str, str]:
    """SOP class and transfer syntax of a file or a data set."""
    from pydicom.filereader import read_file_meta_info
    meta = read_file_meta_info(entry) if isinstance(entry, Path) else entry.file_meta
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def bundled_files() -> list[Path]:
    """Objects of every kind that come with pydicom; nothing is fetched. They are sent byte for byte."""
    import pydicom.data
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import MediaStorageDirectoryStorage
    from pynetdicom import _config
    _config.STORE_SEND_CHUNKED_DATASET = True
    files = []
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*")):
        if not path.is_file():
            continue
        try:
            meta = read_file_meta_info(path)
            named = meta.MediaStorageSOPInstanceUID and meta.TransferSyntaxUID
            if named and meta.MediaStorageSOPClassUID not in ("", MediaStorageDirectoryStorage):
                files.append(path)
        except (InvalidDicomError, AttributeError, EOFError):
            continue   # no Part 10 file, or one that does not name its object
    return files


def synthetic_ct(slices: int) -> Iterator[Dataset]:
    """A CT of a ball of water in air, 1 mm a slice; every viewer can show it."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        image.StudyDate, image.StudyTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
        image.AccessionNumber, image.Modality, image.Manufacturer = "DEMO1", "CT", "Dcmgate demo"
        image.StationName, image.StudyDescription, image.SeriesDescription = "DEMO", "Demo", "Ball of water"
        image.ReferringPhysicianName, image.PatientName, image.PatientID = "", "Demo^Patient", "DEMO"
        image.PatientBirthDate, image.PatientSex, image.BodyPartExamined = "", "O", "PHANTOM"
        image.KVP, image.SliceThickness, image.PatientPosition = "120", "1", "HFS"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.StudyID, image.SeriesNumber, image.InstanceNumber, image.PositionReferenceIndicator = "1", 1, number + 1, ""
        image.ImagePositionPatient, image.ImageOrientationPatient = [-255.5, -255.5, float(number)], [1, 0, 0, 0, 1, 0]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns, image.PixelSpacing = SIDE, SIDE, [1, 1]
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
        image.WindowCenter, image.WindowWidth = 0, 400
        image.PixelData = _disc(number, slices)
        yield image


def _disc(number: int, slices: int) -> bytes:
    """The pixels of one slice: water (0 HU) inside the ball, air (-1000 HU) around it."""
    air, water = (-1000).to_bytes(2, "little", signed=True), bytes(2)
    height = (2 * number / max(1, slices - 1) - 1) * 200
    radius = max(0.0, 200.0**2 - height**2) ** 0.5
    rows = []
    for y in range(SIDE):
        half = int(max(0.0, radius**2 - (y - SIDE / 2) ** 2) ** 0.5)
        side = SIDE // 2 - half
        rows.append(air * side + water * (2 * half) + air * side)
    return b"".join(rows)
