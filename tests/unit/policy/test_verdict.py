"""What people at the scanners are told: red only where nothing is taken in, and never a word of a patient."""

from __future__ import annotations

import pytest

from appliance.model import Alarm, Severity, SpaceState
from appliance.policy.verdict import Colour, Standing, verdict

ALARM = Alarm("parked:pacs", Severity.WARNING, "3 objects are parked for pacs: Doe^Jane")


@pytest.mark.parametrize(("standing", "colour", "word"), [
    (Standing(), Colour.GREEN, "delivered"),
    (Standing(set_up=False), Colour.RED, "set up"),
    (Standing(fault="I/O error"), Colour.RED, "not taken in"),
    (Standing(answers=False), Colour.RED, "not taken in"),
    (Standing(space=SpaceState.RED), Colour.RED, "full"),
    (Standing(space=SpaceState.BLACK, down=1), Colour.RED, "full"),
    (Standing(space=SpaceState.AMBER), Colour.YELLOW, "taken in"),
    (Standing(down=1, owed=1), Colour.YELLOW, "1 image waits"),
    (Standing(down=2, owed=7), Colour.YELLOW, "7 images wait"),
    (Standing(alarms=[ALARM]), Colour.YELLOW, "alarm"),
    (Standing(alarms=[Alarm("x", Severity.NOTICE, "")]), Colour.GREEN, "delivered"),
])
def test_the_worst_thing_that_is_so(standing, colour, word):
    found = verdict(standing)
    assert found.colour is colour
    assert word in found.sentence and "Doe" not in found.sentence and "\n" not in found.sentence
