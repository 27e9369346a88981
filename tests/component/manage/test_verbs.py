"""The verbs behind the control socket: in the name of whoever asked, wrong arguments refused with a mend, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.clock import SystemClock
from appliance.config import load
from appliance.config.settings import Config
from appliance.errors import ConfigError, ControlError, DcmgateError
from appliance.manage import generations
from appliance.manage.control import Local
from appliance.manage.generations import Source
from appliance.manage.verbs import MOST_NUMBERS, Desk, handlers, in_parts, parse_number
from appliance.model import Custody, Priority, number_text
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Routing
from tests.support.spools import accept, fresh, intake_of

GOOD = """
[[listener]]
id = "in"
[[destination]]
id = "pacs"
address = "h"
default = true
[[destination]]
id = "second"
address = "h"
"""


class Office:
    """A desk with two objects that are routed to `pacs`."""

    def __init__(self, folder: Path) -> None:
        self.spool: Spool = fresh(folder / "spool")
        with intake_of(self.spool) as intake:
            self.objects: list[Custody] = [accept(intake, data) for data in (b"one", b"two")]
        self.ledger = Ledger.open(self.spool.ledger_path, SystemClock())
        self.ledger.route([Routing(c.number, 1, (), ("pacs",), Priority.ROUTINE) for c in self.objects])
        self.file = folder / "dcmgate.toml"
        self.file.write_text(GOOD)
        self.source = Source(self.ledger, generations.publish_file(self.ledger, str(self.file), "test").config)
        self.kicks = 0
        desk = Desk(self.spool, self.ledger, self.source, self.reload, self.kick)
        self.ask = Local(handlers(desk), "ada")

    def kick(self) -> None:
        self.kicks += 1

    def reload(self, by: str) -> generations.InForce:
        return generations.publish_file(self.ledger, str(self.file), by)

    @property
    def numbers(self) -> list[str]:
        return [number_text(c.number) for c in self.objects]

    def last(self) -> Any:
        import json
        event = self.ledger.events(self.ledger.head()[0] - 1)[-1]
        return event.kind, json.loads(event.body)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.ledger.close()


def test_each_verb_is_in_the_name_of_whoever_asked(office: Office) -> None:
    one = office.numbers[:1]
    assert office.ask.call("hold", numbers=one, reason="why", by="mallory") == {"deliveries": 1}
    assert office.last() == ("held", {"by": "ada", "reason": "why"})
    assert office.ask.call("release", numbers=one) == {"deliveries": 1}
    assert office.last()[1]["by"] == "ada"
    assert office.ask.call("requeue", numbers=one, to="second") == {"deliveries": 1}
    assert office.last() == ("requeued", {"by": "ada", "to": "second"})
    assert office.ask.call("discard", numbers=one, reason="phantom") == {"discarded": one}
    assert office.last() == ("discarded", {"by": "ada", "reason": "phantom"})
    assert office.ask.call("admit", title=" CT1 ", address="10.0.0.1") == {"title": "CT1", "address": "10.0.0.1"}
    assert office.last() == ("admitted", {"by": "ada", "title": "CT1", "address": "10.0.0.1"})
    assert office.ask.call("seen", what="list") == {"by": "ada"}
    assert office.last() == ("seen", {"by": "ada", "what": "list"})
    assert office.kicks == 2
    assert office.ask.call("ping")["generation"] == 1


def test_reload_puts_a_good_file_in_force_and_leaves_a_bad_one(office: Office) -> None:
    assert office.ask.call("reload") == {"generation": 1, "changed": False}
    office.file.write_text(GOOD + "[limits]\nchild_seconds = 9\n")
    assert office.source().limits.child_seconds == 5.0
    assert office.ask.call("reload") == {"generation": 2, "changed": True}
    assert office.source().limits.child_seconds == 9.0 and office.source() is office.source()
    office.file.write_text(GOOD + "[limits]\nchild_secnds = 9\n")
    with pytest.raises(ConfigError, match="child_seconds"):
        office.ask.call("reload")
    assert office.source().generation == 2
    assert office.last() == ("configured", office.last()[1]) and office.last()[1]["by"] == "ada"


def test_a_generation_of_a_later_release_leaves_the_one_before_in_force(office: Office) -> None:
    before = office.source()
    office.ledger.publish(GOOD + "[future]\nx = 1\n", "later release")
    assert office.source() is before and office.source() is before
    with pytest.raises(ConfigError, match="generation 2"):
        generations.published(office.ledger)


def test_only_what_is_damaged_is_put_aside(office: Office) -> None:
    path = office.spool.object_path(office.objects[0].number)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"X")
    assert office.ask.call("damaged", numbers=office.numbers) == {"quarantined": office.numbers[:1]}
    assert not path.exists() and office.spool.object_path(office.objects[1].number).exists()
    assert office.ask.call("damaged", numbers=office.numbers) == {"quarantined": []}


@pytest.mark.parametrize(("verb", "args", "message"), [
    ("hold", {}, "numbers of objects are missing"),
    ("hold", {"numbers": "1"}, "numbers of objects are missing"),
    ("hold", {"numbers": ["x"]}, '"x" is no number'),
    ("hold", {"numbers": [1]}, '"1" is no number'),
    ("hold", {"numbers": ["ffff"]}, "there is no object 000000000000ffff"),
    ("hold", {"numbers": ["1"] * (MOST_NUMBERS + 1)}, "too many at once"),
    ("requeue", {"queue": "pasc"}, 'there is no destination "pasc" — did you mean "pacs"'),
    ("requeue", {"queue": "pacs", "to": 3}, 'there is no destination "3"'),
    ("requeue", {"queue": "pacs", "to": "pacs"}, "moved to itself"),
    ("discard", {"numbers": ["1"], "reason": ""}, "needs a reason"),
    ("discard", {"numbers": ["1"], "reason": 1}, "reason must be a text"),
    ("admit", {"title": "A\\B", "address": "10.0.0.1"}, "is no AE title"),
    ("admit", {"title": "A", "address": "all"}, "is no address"),
    ("seen", {"what": ""}, "what was seen must be said"),
    ("seen", {"what": "x" * 1025}, "at most 1024"),
])
def test_wrong_arguments_are_refused_in_words(office: Office, verb: str, args: dict[str, Any], message: str) -> None:
    head = office.ledger.head()
    with pytest.raises(DcmgateError, match=message.replace("?", r"\?")):
        office.ask.call(verb, **args)
    assert office.ledger.head() == head


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
NAMES = st.sampled_from(["numbers", "reason", "destination", "to", "queue", "title", "address", "what"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["hold", "release", "requeue", "discard", "damaged", "admit", "seen", "ping"]),
       st.dictionaries(NAMES, JSON | st.lists(st.sampled_from(["1", "41", "0" * 16]))))
def test_any_arguments_are_done_or_refused(office: Office, verb: str, args: dict[str, Any]) -> None:
    try:
        office.ask.call(verb, **args)
    except ControlError as e:
        assert e.message
    except DcmgateError as e:
        assert e.mend


@given(st.integers(1, (1 << 63) - 1))
def test_numbers_are_written_as_they_are_read(number: int) -> None:
    assert parse_number(number_text(number)) == number == parse_number(f"{number:X}")


@pytest.mark.parametrize("text", ["", "0", "g", "8000000000000000", "1" * 17, " 1", "0x1", None, 1, "\u0661"])
def test_what_is_no_number(text: object) -> None:
    with pytest.raises(ControlError, match="no number"):
        parse_number(text)


def test_many_numbers_go_in_parts() -> None:
    assert [len(part) for part in in_parts(range(1, 2 * MOST_NUMBERS + 2))] == [MOST_NUMBERS, MOST_NUMBERS, 1]


def test_tags_in_rules_are_those_of_the_standard() -> None:
    assert [generations.tag_problem(n) for n in ("SeriesDescription", "0008,103E", "(0009,1001)", "DEADBEEF")] == [""] * 4
    assert generations.tag_problem("SeriesDescripton") == 'did you mean "SeriesDescription"?'
    assert "private tag" in generations.tag_problem("Qqqqqqqqq")
    assert isinstance(load.parse(GOOD, "x"), Config)
