"""The disk that fails on purpose: an error that it gives is one that the program hears."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.faultfs import Rule, fault_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="root and /dev/fuse")


def test_an_error_in_the_middle_of_a_write_is_heard_when_the_program_goes_on(tmp_path: Path) -> None:
    """The kernel makes a short write of it: SQLite goes on there, and would never have known of the error."""
    with fault_folder(tmp_path / "mount", tmp_path / "backing") as disk:
        file = os.open(disk.mount / "ledger.sqlite-wal", os.O_RDWR | os.O_CREAT)
        try:
            disk.plan([Rule("wal", "write", 2, errno.EIO)])
            written = os.pwrite(file, b"a" * 4096, 56)
            assert written < 4096
            assert not disk.hits()
            with pytest.raises(OSError, match="Input/output"):
                os.pwrite(file, b"a" * (4096 - written), 56 + written)
            assert [hit.error for hit in disk.hits()] == [errno.EIO]
            assert os.pwrite(file, b"a" * (4096 - written), 56 + written) == 4096 - written
        finally:
            os.close(file)
