"""What everybody may read of the disks: the initrd's word, that of `disk open`, and the kernel's on the mirror."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.disks.found import boot_found, publish, spool_found
from appliance.policy.disks import Boot, Member, Opened, SpoolDisks, redundant

ONE, TWO = Member("11111111-aaaa", "S1"), Member("22222222-bbbb", "S2")


def mirror(sys: Path, states: dict[str, str], *, action: str = "idle", errors: int = 0) -> None:
    """Directories as the kernel has them: block/md127/md/dev-dm-N/{state,errors,block/dm/name}."""
    array = sys / "block/md127/md"
    for number, (part, state) in enumerate(states.items()):
        slot = array / f"dev-dm-{number}"
        (slot / "block/dm").mkdir(parents=True)
        (slot / "block/dm/name").write_text(f"dcmgate-member-{part}\n")
        (slot / "state").write_text(state + "\n")
        (slot / "errors").write_text(f"{errors}\n")
    array.mkdir(parents=True, exist_ok=True)
    (array / "sync_action").write_text(action + "\n")


@pytest.mark.parametrize(("states", "action", "working", "is_redundant"), [
    ({"11111111": "in_sync", "22222222": "in_sync"}, "idle", [True, True], True),
    ({"11111111": "in_sync", "22222222": "in_sync"}, "resync", [True, True], False),
    ({"11111111": "in_sync", "22222222": "spare"}, "recover", [True, True], False),
    ({"11111111": "in_sync", "22222222": "spare"}, "idle", [True, True], False),
    ({"11111111": "in_sync", "22222222": "faulty,write_error"}, "idle", [True, False], False),
    ({"11111111": "in_sync"}, "idle", [True, False], False),
    ({}, "idle", [False, False], False)])
def test_each_member_is_what_the_kernel_says_now(tmp_path: Path, states: dict[str, str], action: str, working: list[bool],
                                                 is_redundant: bool) -> None:
    publish(SpoolDisks(True, True, True, (ONE, TWO)), tmp_path / "run")
    mirror(tmp_path / "sys", states, action=action, errors=3)
    found = spool_found(tmp_path / "run", tmp_path / "sys")
    assert [one.working for one in found.members] == working
    assert redundant(found) is is_redundant
    assert found.errors == 3 * len(states)


def test_a_single_disk_and_a_spool_that_is_not_open_are_what_was_published(tmp_path: Path) -> None:
    gone = SpoolDisks(True, False, True, (ONE, TWO), problem="disk S1 is not there")
    for spool in (SpoolDisks(True, True, False, (ONE,)), gone):
        publish(spool, tmp_path)
        assert spool_found(tmp_path, tmp_path) == spool


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    assert spool_found(tmp_path) == SpoolDisks() and boot_found(tmp_path) == Boot()
    (tmp_path / "spool.json").write_text("[]")
    (tmp_path / "disk").write_text("var=luks2\nopened=key-slot\n")
    assert spool_found(tmp_path) == SpoolDisks()
    assert boot_found(tmp_path) == Boot("luks2", Opened.KEY_SLOT)
