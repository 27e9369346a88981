"""Places for associations, by listener and by address."""

from __future__ import annotations

from appliance.config.settings import Listener
from appliance.receive.places import Places

LAN = Listener(id="lan", max_associations=3, max_per_address=2)
WLAN = Listener(id="wlan", max_associations=3, max_per_address=2)


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
