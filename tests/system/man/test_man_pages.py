"""The documents become man pages, and what they link to exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted((ROOT / "appliance" / "man").glob("*.md"))


def test_every_document_builds_into_a_man_page():
    done = subprocess.run([ROOT / ".ci" / "man"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        name, section = re.match(r"# ([a-z-]+)\(([1-9])\)", page.read_text()).groups()
        built = (ROOT / "build" / "man" / f"{name}.{section}").read_text()
        assert f'.TH "{name}" "{section}"' in built
        assert "NAME" in built


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_every_file_that_a_document_names_exists(page: Path):
    named = set(re.findall(r"`((?:appliance|tests|rootfs|image-build|hw-test)/[\w./-]+)`", page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
