"""A sample of the instrument "bit_flips", and that it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.dicom import part10
from appliance.spool import reader
from appliance.spool.ledger import Ledger
from appliance.spool.rows import ChainReport
from tests.proof.bit_flips import Flipper
from tests.proof.bit_flips_spool import Template


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return Template(tmp_path_factory.mktemp("flips") / "template")


@pytest.fixture
def flipper(template: Template, tmp_path: Path) -> Iterator[Flipper]:
    yield Flipper(template, tmp_path / "copy")


@pytest.mark.requirement("I5")
@pytest.mark.requirement("I2")
def test_two_hundred_flips_are_detected_or_harmless(flipper: Flipper) -> None:
    counts, failures = flipper.batch(20260102, 160)
    assert failures == []
    assert counts["detected"] > 50 and counts["rebuilt"] > 15, counts


def test_a_digest_that_is_not_checked_is_found(flipper: Flipper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Any32:
        def update(self, data: object) -> None: ...

        def digest(self) -> Any:
            return type("", (bytes,), {"__ne__": lambda *_: False})()

    monkeypatch.setattr(reader, "blake3", Any32)
    assert any("forwarded as good" in flipper.flip("data", n / 10) for n in range(10))


def test_a_head_whose_crc_is_not_checked_is_found(flipper: Flipper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whatever(int):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = int.__hash__

    monkeypatch.setattr(part10, "crc32", lambda *_: Whatever())
    dice = [n / 400 for n in range(400)]
    assert any("adopted" in flipper.flip("head", bit) for bit in dice)


def test_a_ledger_that_is_not_looked_at_is_found(flipper: Flipper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither chain nor tables nor the file itself are checked."""
    monkeypatch.setattr(Ledger, "verify_chain", lambda *_: ChainReport(1, 1, b"", ()))
    monkeypatch.setattr(Ledger, "quick_check", lambda *_, **__: [])
    monkeypatch.setattr(Ledger, "differences", lambda *_: [])
    _, failures = flipper.batch(3, 100)
    assert any("nothing says so" in failure for failure in failures), failures
