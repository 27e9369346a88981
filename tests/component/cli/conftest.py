"""A site with a made spool for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sites import CliSite


@pytest.fixture
def bare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliSite]:
    """Configuration only."""
    site = CliSite(tmp_path, capsys)
    yield site
    site.close()


@pytest.fixture
def site(bare: CliSite) -> CliSite:
    bare("spool", "init")
    return bare
