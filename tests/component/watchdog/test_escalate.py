"""Escalation with its effects: one reboot that is written down before, then degraded mode; never a loop."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.health.checks import State, Verdict
from appliance.health.checks import spool as spool_check
from appliance.policy.escalation import PROBATION, Disk, Step
from appliance.spool.layout import Spool
from appliance.watchdog import boots, escalate
from appliance.watchdog.budget import Budget, File, text
from appliance.watchdog.escalate import Places


class Machine:
    def __init__(self, trial: bool = False) -> None:
        self.done: list[tuple[str, ...]] = []
        self.trial = trial
        self.status = 0

    def control(self, *words: str) -> int:
        self.done.append(words)
        return 0

    def on_trial(self) -> bool:
        return self.trial

    def ended_with(self, unit: str) -> int:
        return self.status


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    Spool.init(tmp_path / "spool", clock=SystemClock())
    return Places(tmp_path / "spool", tmp_path / "state", tmp_path / "run")


def kept(places: Places) -> Budget:
    return Budget([File(places.state / "budget.json")])


def begin(places: Places, id: str) -> boots.Boot:
    (places.run / boots.NOTE).write_text("")
    return boots.begin(places.state, places.run, places.state / "none", (), id, kept=True)


FAILED = (Disk.FAILED, "EIO")


@pytest.mark.requirement("Watchdog chain: one reboot, then degraded mode")
def test_a_receiver_that_cannot_be_brought_back_costs_one_reboot_and_then_degraded_mode(places: Places) -> None:
    begin(places, "one")
    first = Machine()
    assert escalate.escalate("receiver", places, first, kept(places)).step is Step.REBOOT
    assert first.done == [("--no-block", "reboot")]
    assert begin(places, "two").reset == "escalation"
    second = Machine()
    assert escalate.escalate("receiver", places, second, kept(places)).step is Step.DEGRADED
    assert ("--no-block", "start", "dcmgate-degraded.service") in second.done
    assert ("--no-block", "restart", "dcmgate-again@receiver.timer") in second.done
    assert not any("reboot" in words for words in second.done)
    assert escalate.told(places.run)[0] == "receiver"


def test_without_a_place_for_the_budget_nothing_is_rebooted(places: Places) -> None:
    machine = Machine()
    nowhere = Budget([File(places.state / "not" / "there")])
    assert escalate.escalate("receiver", places, machine, nowhere).step is Step.DEGRADED
    assert not any("reboot" in words for words in machine.done)


def test_a_dead_disk_of_the_spool_is_one_fault_whoever_meets_it(places: Places) -> None:
    assert escalate.escalate("spool", places, Machine(), kept(places), FAILED).step is Step.REBOOT
    for unit in ("receiver", "forwarder", "keeper", "spool"):
        decision = escalate.escalate(unit, places, Machine(), kept(places), FAILED)
        assert (decision.step, decision.fault) == (Step.DEGRADED, "spool")


@pytest.mark.requirement("Watchdog chain: a dead spool disk at boot is degraded mode")
def test_a_disk_that_is_not_there_is_degraded_mode_at_once(places: Places, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    gone = Places(tmp_path / "empty", places.state, places.run)
    machine = Machine()
    assert escalate.escalate("receiver", gone, machine, kept(places)).step is Step.DEGRADED
    assert escalate.look(gone.spool)[0] is Disk.ABSENT
    assert not any("reboot" in words for words in machine.done)
    assert not list(gone.spool.iterdir()), "nothing is written where no spool is"


def test_a_slot_on_trial_rolls_back_and_spends_no_budget(places: Places) -> None:
    machine = Machine(trial=True)
    assert escalate.escalate("keeper", places, machine, kept(places)).step is Step.ROLL_BACK
    assert machine.done == [("--no-block", "reboot")]
    assert kept(places).read() == {}


def test_a_bad_configuration_is_mended_by_no_reboot(places: Places) -> None:
    machine = Machine()
    machine.status = 1
    assert escalate.escalate("receiver", places, machine, kept(places)).step is Step.DEGRADED
    assert not any("reboot" in words for words in machine.done)


def test_a_forwarder_is_gone_without(places: Places) -> None:
    escalate.escalate("forwarder", places, Machine(), kept(places))
    machine = Machine()
    assert escalate.escalate("forwarder", places, machine, kept(places)).step is Step.WITHOUT
    assert machine.done == [("--no-block", "restart", "dcmgate-again@forwarder.timer")]


def test_it_is_tried_again_where_there_is_a_disk_and_not_where_there_is_none(places: Places, tmp_path: Path) -> None:
    escalate.tell(places.run, "receiver", "a test")
    machine = Machine()
    assert escalate.again("receiver", places, machine)
    assert ("--no-block", "start", "dcmgate-receiver.socket", "dcmgate-receiver.service") in machine.done
    assert escalate.told(places.run) == ("", "")
    (tmp_path / "empty").mkdir()
    machine = Machine()
    assert not escalate.again("receiver", Places(tmp_path / "empty", places.state, places.run), machine)
    assert machine.done[-1] == ("--no-block", "restart", "dcmgate-again@receiver.timer")
    assert machine.done[0] == ("reset-failed", "dcmgate-disks.service")
    assert machine.done[1][0] == "start" and machine.done[1][1].endswith(".mount")
    assert not any("dcmgate-receiver.service" in words for words in machine.done)


def test_the_budget_comes_back_after_a_day_that_went_well(places: Places) -> None:
    escalate.escalate("receiver", places, Machine(), kept(places))
    escalate.healthy(kept(places), PROBATION, ["receiver"])
    assert kept(places).read()
    escalate.healthy(kept(places), PROBATION)
    assert kept(places).read() == {}


def test_the_probe_says_what_the_disk_does(places: Places) -> None:
    probe = spool_check.Probe(places.spool)
    assert probe.look() == Verdict("spool", State.GOOD)
    assert escalate.look(places.spool)[0] is Disk.GOOD
    for code, state in ((5, State.BAD), (28, State.POOR), (255, State.BAD)):
        assert spool_check.Probe(places.spool, program=f"raise SystemExit({code})").look().state is state


def test_who_looks_first_keeps_nobody_of_the_group_out(places: Places) -> None:
    before = os.umask(0o027)
    try:
        assert spool_check.Probe(places.spool).look().state is State.GOOD
    finally:
        os.umask(before)
    assert (places.spool / spool_check.FILE).stat().st_mode & 0o777 == 0o660


@pytest.mark.requirement("Watchdog chain: a good disk is not found bad")
def test_services_that_fail_together_do_not_find_the_disk_bad_for_each_other_s_probes(places: Places) -> None:
    """Each probe reads what it wrote only where no other writes in between."""
    slow = spool_check.PROGRAM.replace("    os.fsync(fd)\n", "    os.fsync(fd)\n    __import__('time').sleep(0.1)\n")
    assert slow != spool_check.PROGRAM
    probes = [spool_check.Probe(places.spool, program=slow) for _ in range(4)]
    with ThreadPoolExecutor(len(probes)) as pool:
        assert [verdict.state for verdict in pool.map(lambda probe: probe.look(), probes)] == [State.GOOD] * len(probes)


class OneByOne(File):
    """Keeps the first who reads waiting until others came as far, or have been kept from it."""

    def __init__(self, path: Path, came: threading.Barrier) -> None:
        super().__init__(path)
        self._came = came

    def read(self) -> bytes:
        found = super().read()
        with suppress(threading.BrokenBarrierError):
            self._came.wait(0.2)
        return found


@pytest.mark.requirement("Watchdog chain: one reboot, then degraded mode")
def test_services_that_fail_together_all_charge_the_budget_and_all_say_why(places: Places) -> None:
    File(places.state / "budget.json").write(text(0, {}))
    units, came = ("receiver", "forwarder", "keeper"), threading.Barrier(3)
    boxes = [Budget([OneByOne(places.state / "budget.json", came)]) for _ in units]

    def fail(unit: str, budget: Budget) -> Step:
        return escalate.escalate(unit, places, Machine(), budget, (Disk.GOOD, "")).step

    with ThreadPoolExecutor(len(units)) as pool:
        assert list(pool.map(fail, units, boxes)) == [Step.REBOOT] * len(units)
    assert set(kept(places).read()) == set(units)


def test_one_that_hangs_in_an_escalation_is_passed(places: Places) -> None:
    with escalate._alone(places.run):
        passed = []
        with escalate._alone(places.run, 0.05):
            passed.append(True)
    assert passed


def test_a_disk_that_hangs_keeps_the_child_and_nobody_else(places: Places) -> None:
    probe = spool_check.Probe(places.spool, 0.3, "import signal, time\nsignal.pthread_sigmask(0, {15})\ntime.sleep(60)")
    assert probe.look().evidence == {"hangs": True}
    assert probe._child is not None
    probe._child.wait(10)
    assert Disk.FAILED is escalate.look(places.spool, probe.look)[0]
