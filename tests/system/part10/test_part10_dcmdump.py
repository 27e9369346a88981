"""DCMTK reads a spooled object as the plain Part 10 file that it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.dicom.part10 import PRIVATE_CREATOR, build_head
from appliance.model import Custody, Source

pytestmark = [pytest.mark.system, pytest.mark.skipif(shutil.which("dcmdump") is None, reason="needs DCMTK")]

DATA_SET = b"\x10\x00\x20\x00LO\x04\x00P123"


@pytest.mark.requirement("conformance: Part 10")
@pytest.mark.parametrize("instance", [b"1.2.826.0.1.3680043.2.1", b"../../etc/passwd", b"\xff" * 100])
def test_dcmdump_reads_the_head_and_the_data_set(tmp_path: Path, instance: bytes) -> None:
    source = Source(calling="CT1", called="DCMGATE", address="2001:db8::7", port=11112, listener="l")
    head = build_head(Custody(1, 1, 1, 1, b"1.2.840.10008.5.1.4.1.1.2", instance, "1.2.840.10008.1.2.1", len(DATA_SET),
                              bytes(32), source))
    path = tmp_path / "object.dcm"
    path.write_bytes(head + DATA_SET)
    done = subprocess.run(["dcmdump", "-Un", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = {line[:11]: line for line in done.stdout.splitlines()}
    assert "[P123]" in lines["(0010,0020)"]
    assert PRIVATE_CREATOR in lines["(0002,0100)"]
    assert "dicom://[2001:db8::7]" in lines["(0002,0026)"]
    assert "UL 3952" in lines["(0002,0000)"]
