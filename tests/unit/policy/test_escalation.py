"""Escalation: restart, one reboot, degraded mode; what is outside the box, and a full disk, never reboot anything."""

from __future__ import annotations

import itertools

import pytest

from appliance.policy.escalation import (
    PROBATION,
    REBOOTS,
    RULES,
    UNSPENT,
    Disk,
    Facts,
    Spent,
    Step,
    charge,
    credit,
    decide,
    rule,
)

UNITS = ("receiver", "forwarder", "keeper", "spool")


def test_the_table_is_the_one_of_the_design() -> None:
    assert {name for name, one in RULES.items() if one.gates} == {"accept", "echo", "workers"}
    assert {name for name, one in RULES.items() if one.reboots} == {"accept", "echo", "workers", "spool"}
    assert not rule("something new").gates and not rule("something new").reboots


@pytest.mark.parametrize(("unit", "last"), [
    ("receiver", Step.DEGRADED), ("forwarder", Step.WITHOUT), ("keeper", Step.WITHOUT)])
def test_one_reboot_and_then_no_more(unit: str, last: Step) -> None:
    first = decide(Facts(unit, spent={}))
    assert (first.step, first.fault) == (Step.REBOOT, unit)
    assert decide(Facts(unit, spent={unit: charge(UNSPENT)})).step is last


def test_the_budget_is_of_each_fault_alone() -> None:
    assert decide(Facts("receiver", spent={"forwarder": charge(UNSPENT)})).step is Step.REBOOT


def test_a_unit_that_fails_for_its_disk_spends_the_disk_s_budget() -> None:
    decision = decide(Facts("forwarder", Disk.FAILED, {}))
    assert (decision.step, decision.fault) == (Step.REBOOT, "spool")
    again = decide(Facts("receiver", Disk.FAILED, {"spool": charge(UNSPENT)}))
    assert (again.step, again.fault) == (Step.DEGRADED, "spool")


@pytest.mark.requirement("Watchdog chain: full disks never reboot")
@pytest.mark.parametrize(("unit", "disk", "trial"), itertools.product(UNITS, (Disk.FULL, Disk.ABSENT), (False, True)))
def test_a_full_or_missing_disk_never_reboots(unit: str, disk: Disk, trial: bool) -> None:
    assert decide(Facts(unit, disk, {}, trial)).step in (Step.DEGRADED, Step.WITHOUT)


@pytest.mark.requirement("Watchdog chain: no budget, no reboot")
@pytest.mark.parametrize(("unit", "disk"), itertools.product(UNITS, Disk))
def test_without_a_place_for_the_budget_there_is_no_reboot(unit: str, disk: Disk) -> None:
    assert decide(Facts(unit, disk, None)).step not in (Step.REBOOT, Step.ROLL_BACK)


@pytest.mark.requirement("Watchdog chain: no reboot loop")
@pytest.mark.parametrize(("unit", "disk"), itertools.product(UNITS, Disk))
def test_no_fault_that_stays_reboots_more_than_its_budget(unit: str, disk: Disk) -> None:
    spent: dict[str, Spent] = {}
    reboots = 0
    for _ in range(50):
        decision = decide(Facts(unit, disk, spent))
        if decision.step is Step.REBOOT:
            reboots += 1
            spent[decision.fault] = charge(spent.get(decision.fault, UNSPENT))
    assert reboots <= REBOOTS


def test_what_a_service_says_itself_is_mended_by_no_reboot() -> None:
    assert decide(Facts("receiver", spent={}, finding=True)).step is Step.DEGRADED
    assert decide(Facts("keeper", spent={}, finding=True, on_trial=True)).step is Step.WITHOUT
    assert decide(Facts("receiver", Disk.FAILED, {}, finding=True)).step is Step.REBOOT


def test_only_a_slot_on_trial_rolls_back_and_a_dead_disk_never_flips_slots() -> None:
    assert decide(Facts("receiver", spent={}, on_trial=True)).step is Step.ROLL_BACK
    assert decide(Facts("receiver", Disk.FAILED, {}, on_trial=True)).step is Step.REBOOT
    assert decide(Facts("spool", Disk.FAILED, {"spool": charge(UNSPENT)}, on_trial=True)).step is Step.DEGRADED
    for unit, disk in itertools.product(UNITS, Disk):
        assert decide(Facts(unit, disk, {})).step is not Step.ROLL_BACK


def test_a_probe_that_went_well_again_is_no_fault() -> None:
    assert decide(Facts("spool", Disk.GOOD, {})).step is Step.NOTHING


def test_the_budget_comes_back_after_a_day_without_the_fault_and_not_before() -> None:
    spent = charge(UNSPENT)
    assert credit(spent, PROBATION - 1).reboots == 1
    assert credit(credit(spent, PROBATION // 2), PROBATION // 2) == UNSPENT
    assert credit(spent, -5) == spent
    assert charge(credit(spent, PROBATION - 1)).owed == PROBATION
