"""Places for associations, by listener and by address."""

from __future__ import annotations

import pytest

from appliance.config.settings import Listener, Peer
from appliance.receive.places import Places, kept

LAN = Listener(id="lan", max_associations=3, max_per_address=2)
WLAN = Listener(id="wlan", max_associations=3, max_per_address=2)

BOX = Listener(id="lan", max_associations=16, max_per_address=8)
KNOWN = (Peer(id="ct", addresses=("10.0.0.1",)), Peer(id="mr", addresses=("10.0.0.2", "10.0.1.0/24")),
         Peer(id="anywhere", titles=("US",)), Peer(id="elsewhere", addresses=("10.0.0.3",), listeners=("other",)),
         Peer(id="bad", addresses=("10.9.0.0/16",), action="refuse"))


def known(*peers: Peer) -> Places:
    places = Places()
    places.configure(peers or KNOWN)
    return places


def most(places: Places, *addresses: str) -> int:
    """How many places these addresses get, each as many as it can, in turn."""
    return sum(places.take(BOX, address) == "" for _ in range(20) for address in addresses)


def test_an_address_has_its_own_limit_on_each_listener():
    places = Places()
    assert [places.take(LAN, "a"), places.take(LAN, "a")] == ["", ""]
    assert "max_per_address" in places.take(LAN, "a")
    assert places.take(WLAN, "a") == places.take(LAN, "b") == ""
    assert "max_associations" in places.take(LAN, "c")
    assert places.taken() == 4


def test_what_is_given_back_is_free_again_and_leaves_no_trace():
    places = Places()
    for n in range(100):
        assert places.take(LAN, f"10.0.0.{n}") == ""
        places.give_back("lan", f"10.0.0.{n}")
    assert places.taken() == 0 and not places._address


def test_a_quarter_is_kept_at_least_four_and_never_more_than_half():
    assert [kept(n) for n in (1, 2, 3, 4, 8, 12, 16, 17, 32, 128)] == [0, 1, 1, 2, 4, 4, 4, 4, 8, 32]


@pytest.mark.requirement("hazard: silent socket")
def test_unknown_addresses_never_take_the_last_places():
    places = known()
    strangers = [f"192.168.0.{n}" for n in range(1, 100)] + ["10.9.0.1", "10.0.0.3"]
    assert most(places, *strangers) == 12
    assert "kept for" in places.take(BOX, "192.168.0.200")
    assert places.take(BOX, "10.0.0.1") == places.take(BOX, "10.0.0.2") == places.take(BOX, "10.0.1.9") == ""


@pytest.mark.requirement("hazard: silent socket")
@pytest.mark.parametrize("first", [["10.0.0.1"], [f"10.0.1.{n}" for n in range(1, 60)], ["10.0.0.2", "192.168.0.1"]], ids=len)
def test_one_known_peer_leaves_a_place_to_each_that_has_none(first: list[str]):
    places = known()
    most(places, "192.168.0.7", "192.168.0.8", *first)
    for address in ("10.0.0.1", "10.0.0.2"):
        if address not in first and places._of("lan").of(address).isdisjoint(places._of("lan").of(first[0])):
            assert places.take(BOX, address) == "", address


def test_an_address_takes_no_more_of_the_last_places_than_it_leaves():
    subnet = known(Peer(id="floor", addresses=("10.0.0.0/8",)))
    assert most(subnet, "192.168.0.1", "192.168.0.2") == 12
    assert most(subnet, "10.0.0.1") == 2 and subnet.take(BOX, "10.0.0.2") == ""


def test_the_only_scanner_there_is_may_have_all():
    assert most(known(Peer(id="ct", addresses=("10.0.0.1",))), "10.0.0.1") == BOX.max_per_address
    small = Listener(id="lan", max_associations=2, max_per_address=2)
    places = known(Peer(id="ct", addresses=("10.0.0.1",)))
    assert [places.take(small, "10.0.0.1") for _ in range(2)] == ["", ""]


def test_without_peers_that_have_addresses_nothing_is_kept():
    places = known(Peer(id="anywhere", titles=("US",)))
    assert most(places, *[f"192.168.0.{n}" for n in range(1, 100)]) == BOX.max_associations


def test_who_is_in_is_counted_by_a_new_configuration():
    places = Places()
    assert most(places, "10.0.0.1") == 8 and most(places, "192.168.0.1") == 8
    places.configure(KNOWN)
    for _ in range(4):
        places.give_back("lan", "192.168.0.1")
    assert "kept for" in places.take(BOX, "192.168.0.1")
    places.give_back("lan", "10.0.0.1")
    assert places.take(BOX, "192.168.0.1") == "" and "kept for" in places.take(BOX, "10.0.0.1")
    assert places.take(BOX, "10.0.0.2") == ""
    for _ in range(7):
        places.give_back("lan", "10.0.0.1")
    assert not places._of_peer["lan", "ct"]
