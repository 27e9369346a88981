"""A receiver on a real spool, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.acceptor import SLOW, Box, receiving


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """With deadlines that a test can wait for."""
    with receiving(tmp_path) as made:
        yield made


@pytest.fixture
def patient_box(tmp_path: Path) -> Iterator[Box]:
    with receiving(tmp_path, limits=SLOW) as made:
        yield made
