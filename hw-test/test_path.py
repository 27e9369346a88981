"""An image comes in on one side and goes out on the other, whatever is restarted meanwhile."""

from __future__ import annotations

from pathlib import Path

from dicom import arrived, content, pacs, send, study
from gateway import GatewayStrategy


def test_a_study_arrives_bit_for_bit(serving: GatewayStrategy, tmp_path: Path) -> None:
    sent = study(tmp_path / "sent", 10)
    with pacs(tmp_path / "pacs") as folder:
        done = send(sent)
        assert done.returncode == 0, done.stderr
        assert arrived(folder, len(sent)) == dict(content(path) for path in sent)


def test_it_waits_for_a_pacs_that_is_away(serving: GatewayStrategy, tmp_path: Path) -> None:
    sent = study(tmp_path / "sent", 3)
    assert send(sent).returncode == 0
    with pacs(tmp_path / "pacs") as folder:
        assert arrived(folder, len(sent), 400) == dict(content(path) for path in sent)
