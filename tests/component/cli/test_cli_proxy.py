"""`dcmgate proxy password`: where it goes, who can read it, and what is refused."""

from __future__ import annotations

import io

import pytest

from appliance.net.proxy import Proxy
from tests.support.sites import CliSite

PLACE = "proxy.example.org:3128"


@pytest.fixture
def behind(bare: CliSite) -> CliSite:
    """A site whose destination is behind a proxy."""
    text = bare.config.read_text()
    bare.config.write_text(text + f'\n[[destination]]\nid = "far"\naddress = "192.0.2.9"\nproxy = "{PLACE}"\n')
    bare("spool", "init")
    return bare


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_it_is_kept_for_the_service_alone(behind: CliSite, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "p:ss wörd\n")
    said = behind("proxy", "password", PLACE, "--user", "clinic")
    proxy = Proxy(PLACE, behind.folder / "state")
    assert str(proxy.file) in said and "wörd" not in said
    assert proxy.credentials() == "clinic:p:ss wörd".encode()
    assert (proxy.file.stat().st_mode & 0o777, proxy.file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    typed(monkeypatch, "another")
    behind("proxy", "password", PLACE, "--user", "clinic")
    assert proxy.credentials() == b"clinic:another"
    assert [path.name for path in proxy.file.parent.iterdir()] == [PLACE]


@pytest.mark.parametrize(("arguments", "word", "words"), [
    ((PLACE.replace("3128", "3129"), "--user", "clinic"), "x", "did you mean"),
    ((PLACE, "--user", "cli:nic"), "x", "colon"), ((PLACE, "--user", "clinic"), "x\x07", "control character"),
    ((PLACE, "--user", ""), "x", "user:password")])
def test_what_cannot_be_a_password(behind: CliSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                   arguments: tuple[str, ...], word: str, words: str) -> None:
    typed(monkeypatch, word)
    behind("proxy", "password", *arguments, status=2)
    assert words in behind.err
    assert not (behind.folder / "state" / "proxies").exists()
