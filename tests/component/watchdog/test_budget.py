"""The budget outlives its process, in places that are not the suspect disk; what was not kept does not count."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from appliance.policy.escalation import UNSPENT, Spent, charge
from appliance.watchdog.budget import Budget, File, Variable, within


class Broken:
    def read(self) -> bytes:
        raise OSError("broken")

    def write(self, data: bytes) -> None:
        raise OSError("broken")


class Forgetful:
    """Firmware that says yes."""

    def read(self) -> bytes:
        return b""

    def write(self, data: bytes) -> None:
        pass


class Hung:
    def __init__(self) -> None:
        self.over = threading.Event()

    def read(self) -> bytes:
        self.over.wait(30)
        return b""

    def write(self, data: bytes) -> None:
        self.over.wait(30)


def test_what_was_written_is_read_by_the_next(tmp_path: Path) -> None:
    places = [Variable(tmp_path / "variable"), File(tmp_path / "budget.json")]
    assert Budget(places).read() == {}
    spent = {"spool": charge(UNSPENT), "receiver": Spent(1, 5)}
    assert Budget(places).write(spent) == 2
    for some in (places, places[:1], places[1:]):
        assert Budget(some).read() == spent
    assert (tmp_path / "variable").read_bytes()[:4] == b"\x07\0\0\0", "attributes first, as the kernel wants it"


def test_the_newest_counts(tmp_path: Path) -> None:
    places = [File(tmp_path / "a"), File(tmp_path / "b")]
    Budget(places).write({"spool": Spent(1, 9)})
    only = Budget(places[1:])
    only.read()
    only.write({"spool": Spent(1, 3)})
    both = Budget(places)
    assert both.read() == {"spool": Spent(1, 3)}
    assert both.write({}) == 2
    assert Budget(places).read() == {}


@pytest.mark.requirement("Watchdog chain: no budget, no reboot")
def test_a_place_that_is_broken_forgetful_or_hung_keeps_nothing_and_nobody_waiting(tmp_path: Path) -> None:
    hung = Hung()
    assert Budget([Broken(), Forgetful(), hung], seconds=0.2).write({"spool": Spent(1, 1)}) == 0
    budget = Budget([Broken(), hung, File(tmp_path / "b")], seconds=0.2)
    assert budget.write({"spool": Spent(1, 1)}) == 1
    assert budget.read() == {}, "its own is the newest it knows"
    assert Budget([hung, Broken(), File(tmp_path / "b")], seconds=0.2).read() == {"spool": Spent(1, 1)}
    hung.over.set()


def test_nonsense_is_nothing_known(tmp_path: Path) -> None:
    for data in (b"", b"[]", b"{}", b'{"serial": 1, "faults": {"x": 1}}', b"\xff" * 100):
        (tmp_path / "b").write_bytes(data)
        assert Budget([File(tmp_path / "b")]).read() == {}


def test_an_error_inside_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 // 0)
    with pytest.raises(OSError, match="no answer"):
        within(threading.Event().wait, 0.1)
