"""Health by traffic and canaries, with the whole gateway and the real programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import Scanner, contexts_of
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

OFTEN = 0.02
"""Minutes: 1.2 s."""


def shown(site: Gateway, id: str) -> dict[str, Any]:
    return next(d for d in site.json("status", "--once")["destinations"] if d["destination"] == id)


def alarms(site: Gateway) -> dict[str, str]:
    return {alarm["key"]: alarm["text"] for alarm in site.json("status", "--once")["alarms"]}


@pytest.mark.requirement("health: alarm with nothing to send")
def test_idle_destinations_are_proven_or_missed(tmp_path: Path) -> None:
    """One is there, one is not, one does not know us; nothing is ever sent."""
    with peers.storescp(tmp_path / "there") as there, peers.storescp(tmp_path / "refusing", options=["--refuse"]) as refusing, \
            Gateway(tmp_path / "site", [
                to_peer(there, id="there", echo_minutes=OFTEN), to_peer(refusing, id="refusing", default=False,
                                                                         echo_minutes=OFTEN),
                to_peer(peers.Destination("gone", "GONE", free_port(), tmp_path), id="gone", default=False,
                        echo_minutes=OFTEN)]) as site:
        site.start()
        wait_until(lambda: {"destination-down:gone", "destination-refuses:refusing"} <= alarms(site).keys(), 40, every=0.3)
        assert "destination-down:there" not in alarms(site)
        assert "tcp" in alarms(site)["destination-down:gone"]
        state = shown(site, "there")
        assert state["state"] == "up" and state["reached"]["by"] == "C-ECHO" and state["reached"]["seconds_ago"] < 30
        assert (shown(site, "gone")["state"], shown(site, "gone")["reached"]["hop"]) == ("down", "tcp")
        text = site.command("status", "--once")
        assert "ago by C-ECHO" in text and "at tcp: 127.0.0.1 refuses the connection" in text


@pytest.mark.requirement("health: traffic counts")
def test_a_delivery_is_shown_as_what_proves_it(tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "pacs") as pacs, Gateway(tmp_path / "site", [to_peer(pacs, id="pacs")]) as site:
        site.start()
        image = objects.ct(1, "health", side=64)
        with Scanner(site.port, contexts_of([image])) as scanner:
            assert scanner.store(image) == 0
        pacs.wait_for([image.key])
        wait_until(lambda: (shown(site, "pacs")["reached"] or {}).get("by") == "delivery", 20, every=0.2)
