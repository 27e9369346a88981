"""Images over TLS through Debian's tinyproxy, which wants a password and leads to some ports only."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import objects, peers, pki
from tests.support.gateway import Gateway, to_peer
from tests.support.proxies import password, tinyproxy
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_images_go_through_a_proxy_and_what_it_refuses_is_an_alarm(tmp_path: Path) -> None:
    """Right password, wrong one until it is corrected, a port that the proxy does not lead to."""
    ca = pki.Authority("Cloud CA")
    state = tmp_path / "gateway" / "state"
    pki.place(state, "box", ca.leaf("box"), trust=[ca])
    key, chain = ca.leaf("cloud", addresses=["127.0.0.1"]).write(tmp_path, "cloud")
    (tmp_path / "trust.pem").write_bytes(pki.pem(ca.certificate))
    sent = peers.files_of((objects.ct(n, "proxied", side=128) for n in range(1, 6)), tmp_path / "sent")
    keys = [file.key for file in sent]
    with ExitStack() as stack:
        enter = stack.enter_context
        archives = {name: enter(peers.storescp(tmp_path / name, options=[
            "+tls", str(key), str(chain), "+cf", str(tmp_path / "trust.pem")])) for name in ("right", "wrong", "forbidden")}
        right = enter(tinyproxy(tmp_path / "proxy", ports=[archives["right"].port, archives["wrong"].port]))
        wrong = enter(tinyproxy(tmp_path / "other", login="clinic:other", ports=[archives["wrong"].port]))
        password(state, right.place)
        password(state, wrong.place)
        proxies = {"right": right, "wrong": wrong, "forbidden": right}
        destinations = [{**to_peer(archive, id=name, tls="bcp195", certificate="box"), "proxy": proxies[name].place}
                        for name, archive in archives.items()]
        gateway = enter(Gateway(tmp_path / "gateway", destinations, extra=[("[certificate]", {"id": "box"})]))
        gateway.start("run")
        assert peers.storescu(gateway.port, sent, tmp_path).returncode == 0
        archives["right"].wait_for(keys)
        assert right.asked(archives["right"].port)

        def said() -> dict[str, str]:
            return {alarm["key"].partition(":")[2]: f"{alarm['text']} — {alarm['mend']}"
                    for alarm in gateway.json("status")["alarms"] if alarm["key"].startswith("destination-refuses")}

        wait_until(lambda: {"wrong", "forbidden"} <= set(said()), 30, "both refusals are alarms", every=0.5)
        assert "answered 401" in said()["wrong"] or "answered 407" in said()["wrong"]
        assert "dcmgate proxy password" in said()["wrong"]
        assert "answered 403" in said()["forbidden"] and str(archives["forbidden"].port) in said()["forbidden"]
        password(state, wrong.place, "clinic:other")
        gateway.json("reload")
        archives["wrong"].wait_for(keys, 120)
        assert archives["forbidden"].arrived() == []


def test_a_far_end_that_the_proxy_cannot_reach(tmp_path: Path) -> None:
    sent = peers.files_of([objects.ct(1, "unreached", side=16)], tmp_path / "sent")
    with tinyproxy(tmp_path / "proxy", login="") as proxy:
        destination = {"id": "cloud", "type": "dimse", "address": "127.0.0.1", "port": free_port(), "called": "PACS",
                       "calling": "DCMGATE", "default": True, "proxy": proxy.place}
        with Gateway(tmp_path / "gateway", [destination]) as gateway:
            gateway.start("run")
            assert peers.storescu(gateway.port, sent, tmp_path).returncode == 0
            told = wait_until(lambda: [d["text"] for d in gateway.json("status")["destinations"] if d["text"]], 30, every=0.5)
    assert "is not reached through its proxy" in told[0] and proxy.place in told[0]
