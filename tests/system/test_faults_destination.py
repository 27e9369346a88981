"""Destinations that refuse, swallow, reset, hang, lie or talk nonsense: the others go on, and each recovers by itself."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import faults, objects, peers
from tests.support.badpeers import FAILING
from tests.support.faults import Journal, start_hurried, wait_alarm
from tests.support.gateway import Gateway, to_peer
from tests.support.nonsense import NONSENSE, bad_destination, forgetful_archive
from tests.support.peers import Destination
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.mark.requirement("design: Delivery, the table of answers")
@pytest.mark.requirement("I9")
@pytest.mark.parametrize("kinds", [tuple(FAILING), tuple(NONSENSE)], ids=["failing", "nonsense"])
def test_every_bad_destination_at_once_beside_a_good_one(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """The good one has everything soon; the others alarm, and each has everything, once, when a real archive is in its place.

    Nobody touches the gateway meanwhile: no restart, no new configuration.
    """
    study = objects.ct_study(8, "bad", side=128)
    journal = Journal()
    with ExitStack() as stack:
        good = stack.enter_context(peers.storescp(tmp_path / "good"))
        bad = stack.enter_context(ExitStack())
        ports = {kind: bad.enter_context(bad_destination(kind)) for kind in kinds}
        destinations = [to_peer(good, id="good")]
        destinations += [to_peer(Destination(kind, kind.upper(), port, Path()), connect_seconds=1.0, progress_seconds=1.0)
                         for kind, port in ports.items()]
        site = stack.enter_context(Gateway(tmp_path / "site", destinations))
        site.start()
        assert set(journal.send(site.port, study)) == {"0000"}
        good.wait_for(journal.acknowledged, 20)
        for kind in kinds:
            alarm = wait_alarm(site, f"^destination-(down|refuses):{kind} ")
            assert alarm["text"] and alarm["mend"], alarm
            if kind == "rejecting":   # an administrator has to act: said at once, with the title
                assert alarm["severity"] == "critical" and '"DCMGATE"' in alarm["text"], alarm
        balance = site.balance()
        assert balance["waiting"] == len(study), balance   # each counts at its least advanced destination
        assert balance["unaccounted"] == 0
        bad.close()
        mended = {kind: stack.enter_context(peers.storescp(tmp_path / kind, port=port)) for kind, port in ports.items()}
        for archive in (good, *mended.values()):
            archive.wait_for(journal.acknowledged, 100)
            assert sorted(archive.arrived()) == sorted(journal.acknowledged), archive.folder
        assert site.wait_settled(20)["waiting"] == 0
        assert site.stop() == 0
        assert site.json("balance", "--deep")["unaccounted"] == 0


@pytest.mark.requirement("I4")
def test_an_archive_that_says_stored_and_stores_nothing(tmp_path: Path) -> None:
    """Proof `readback`: what it does not list after five looks goes back to waiting and is sent again.

    Retention is over before it is asked for the first time, and still nothing
    that it has not proved is deleted. The clock is a thousand times as fast.
    """
    study = objects.ct_study(6, "forgotten", side=64)
    journal = Journal()
    with forgetful_archive() as archive:
        destination = to_peer(Destination("pacs", "FORGETFUL", archive.port, Path()), proof="readback")
        with Gateway(tmp_path / "site", [destination], spool={"keep_min_hours": 0.0, "keep_max_days": 0.0}) as site:
            start_hurried(site, 1000)
            assert set(journal.send(site.port, study)) == {"0000"}
            wait_until(lambda: len(archive.received) == len(study), 20, "all were said to be stored")
            assert not archive.stored
            assert not journal.missing(site)
            assert site.balance()["confirmed"] == 0
            alarm = wait_alarm(site, "^readback-missing:pacs ")
            assert "does not have them" in alarm["text"], alarm
            wait_until(lambda: site.balance()["retired"] == len(study), 30, "all proved, and then retired", every=0.2)
            assert archive.stored == {instance.sop_instance for instance in study}
            assert len(archive.received) == 2 * len(study)
            kinds = [event["kind"] for event in _history(site, 1)]
            assert [kind for kind in kinds if kind in ("sent", "unconfirmed", "confirmed", "retired")] == [
                "sent", "unconfirmed", "sent", "confirmed", "retired"]
            assert site.stop() == 0
            assert site.json("balance", "--deep")["unaccounted"] == 0
            assert not faults.held(site.spool)


def _history(site: Gateway, number: int) -> list[dict[str, object]]:
    shown = site.json("show", f"{number:x}")
    events: list[dict[str, object]] = (shown[0] if isinstance(shown, list) else shown["objects"][0])["history"]
    return events
