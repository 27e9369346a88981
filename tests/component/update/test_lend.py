"""Who fetches updates gets copies of what it needs of the box's state, and never a private key."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.settings import Config, Spool, Update
from appliance.net.certstore import Store
from appliance.net.proxy import Proxy
from appliance.update.lend import lend
from appliance.update.places import Places


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    for name, text in (("certificates/site/trust.pem", "anchors"), ("certificates/site/key.pem", "a secret"),
                       ("certificates/other/trust.pem", "others"), ("proxies/proxy.site:3128", "user:word")):
        path = state / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return state


def test_it_gets_trust_and_the_proxy_s_password_and_no_key(tmp_path: Path, state: Path) -> None:
    places = replace(Places(), lent=tmp_path / "lent")
    config = Config(spool=Spool(state=str(state)), update=Update(trust="site", proxy="proxy.site:3128"))
    for _ in range(2):                                  # what was lent before is gone
        lent = lend(places, config, os.getuid(), os.getgid())
        (lent / "old").write_text("left over")
    lent = lend(places, config, os.getuid(), os.getgid())
    assert sorted(str(path.relative_to(lent)) for path in lent.rglob("*") if path.is_file()) == [
        "certificates/site/trust.pem", "proxies/proxy.site:3128"]
    material = Store(lent).material("site")
    assert material.trust is not None and material.key is None
    assert Proxy(config.update.proxy, lent).credentials() == b"user:word"
    assert lent.stat().st_mode & 0o777 == 0o700


def test_where_the_system_s_trust_counts_there_is_nothing_to_lend(tmp_path: Path, state: Path) -> None:
    lent = lend(replace(Places(), lent=tmp_path / "lent"), Config(spool=Spool(state=str(state))), os.getuid(), os.getgid())
    assert list(lent.iterdir()) == []
