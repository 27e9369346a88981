"""Each link of the watchdog chain brings back what hangs below it, within its stated time; and no fault is a reboot loop.

    unit      WatchdogSec=30: a process, a thread or an accept loop that stands still
    board     RuntimeWatchdogSec=15: PID 1
    kernel    panic=5
    budget    one reboot for a spool whose disk fails, then degraded mode
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dicom import arrived, content, pacs, send, study
from gateway import GatewayStrategy, echo
from rootshell import RootShellProtocol
from waiting import seconds_until, wait_until

STATED = {"accept loop": 60, "dead worker thread": 120, "PID 1 stands still": 15 + 15, "kernel panic": 5 + 15,
          "spool's disk fails": 400}
"""Seconds until scanners are answered again; for what resets the machine, until that. (How long a boot takes is another matter:
`figures` has it.) Ten seconds are between two pings, and two in three of the manager's own for the board; the rest is what
software emulation on a shared machine takes longer than a box."""

GENERATORS = "/run/systemd/system-generators"
SLOW_RELOAD = 45
"""Seconds of a generator, which the service manager waits for: three times what the board waits."""

HANG = "/run/hang.py"
EPOLL = "232 281"


@pytest.fixture(autouse=True)
def uncounted(serving: GatewayStrategy, root: RootShellProtocol) -> None:
    """Each test has the whole count of restarts of its own: more of them in ten minutes are escalated."""
    root.run("systemctl reset-failed dcmgate-receiver.service dcmgate-forwarder.service dcmgate-keeper.service")


def main_pid(root: RootShellProtocol, unit: str) -> int:
    return int(root.run(f"systemctl show -P MainPID dcmgate-{unit}.service"))


def degraded(root: RootShellProtocol) -> bool:
    return root.run("systemctl is-active dcmgate-degraded.service || true") == "active"


def boot(box: GatewayStrategy) -> dict[str, Any]:
    return dict(json.loads(box.run("dcmgate boot --json")))


def keep(figures: dict[str, Any], fault: str, box: GatewayStrategy, act: Callable[[], object]) -> None:
    """Do the fault, wait until the box has reset itself within its stated time, and serves; keep both figures."""
    reset, served = box.returns(act, STATED[fault])
    figures[f"seconds to reset, {fault}"], figures[f"seconds to serving, {fault}"] = round(reset, 1), round(served, 1)


def recovers_from_a_dead_accept_loop(root: RootShellProtocol) -> float | None:
    """The thread that accepts is gone, and nobody in the process knows; the seconds until scanners are answered again."""
    root.put(Path(__file__).parents[1] / "tests" / "support" / "hang.py", HANG)
    root.run(f"/usr/lib/dcmgate/bin/python {HANG} kill-in {main_pid(root, 'receiver')} {EPOLL}")
    assert not echo(seconds=3)
    return seconds_until(lambda: echo(seconds=3), STATED["accept loop"])


def test_a_dead_accept_loop_and_a_stuck_forwarder_are_brought_back_by_their_units(
        serving: GatewayStrategy, root: RootShellProtocol, figures: dict[str, Any], tmp_path: Path) -> None:
    before = main_pid(root, "forwarder")
    root.run(f"kill -STOP {before}")
    took = recovers_from_a_dead_accept_loop(root)
    assert took is not None
    figures["seconds to recover, accept loop"] = round(took, 1)
    wait_until(lambda: main_pid(root, "forwarder") not in (0, before), STATED["accept loop"], "another forwarder")
    said = root.run("journalctl -b -o cat _PID=1 2>/dev/null | grep -c 'Watchdog timeout' || true")
    assert int(said) >= 2
    sent = study(tmp_path / "sent", 2)
    with pacs(tmp_path / "pacs") as folder:
        assert send(sent).returncode == 0
        assert arrived(folder, len(sent)) == dict(content(path) for path in sent)


def test_the_same_with_the_watchdog_switched_off_is_not_brought_back(serving: GatewayStrategy, root: RootShellProtocol) -> None:
    """So the check above can fail."""
    root.run("systemctl service-watchdogs no")
    try:
        assert recovers_from_a_dead_accept_loop(root) is None
    finally:
        root.run("systemctl service-watchdogs yes && systemctl kill -s KILL dcmgate-receiver.service")
    wait_until(echo, 60, "a C-ECHO is answered")


def test_a_dead_thread_of_a_worker_is_noticed(serving: GatewayStrategy, root: RootShellProtocol,
                                              figures: dict[str, Any]) -> None:
    """Its main thread is gone, its process lives: it would take connections for ever, and answer none."""
    before = main_pid(root, "receiver")
    worker = root.run("pgrep -u dcmgate-receiver -f receive.process | tail -1")
    root.run(f"/usr/lib/dcmgate/bin/python {HANG} kill {worker}")
    took = wait_until(lambda: main_pid(root, "receiver") not in (0, before) and echo(seconds=3), STATED["dead worker thread"],
                      "another receiver answers")
    figures["seconds to recover, dead worker thread"] = round(took, 1)


def test_a_disk_without_room_reboots_and_restarts_nothing(serving: GatewayStrategy, root: RootShellProtocol,
                                                         tmp_path: Path) -> None:
    number, pid = boot(serving)["boot"], main_pid(root, "receiver")
    root.run("cd /var/spool/dcmgate && fallocate -l $(( $(stat -f -c '%a*%S' .) - (8 << 20) )) filler", 120)
    try:
        sent = study(tmp_path / "sent", 1)
        wait_until(lambda: send(sent).returncode != 0, 60, "the image is refused")
        time.sleep(25)
        assert echo()
        assert (boot(serving)["boot"], main_pid(root, "receiver")) == (number, pid)
        assert not degraded(root)
    finally:
        root.run("rm /var/spool/dcmgate/filler")
    wait_until(lambda: send(sent).returncode == 0, 90, "the image is taken")


def state(box: GatewayStrategy, root: RootShellProtocol) -> list[str]:
    """Which boot, and which processes: all the same as long as nothing was restarted."""
    return [str(boot(box)["boot"]), *(root.run(f"systemctl show -P MainPID -P NRestarts dcmgate-{unit}.service")
                                      for unit in ("receiver", "forwarder", "keeper", "watch"))]


def outage(seconds: float, box: GatewayStrategy, root: RootShellProtocol, figures: dict[str, Any], folder: Path) -> list[str]:
    """So long nobody listens at the other end: scanners are answered, nothing restarts, and then all arrives. The alarms."""
    before = state(box, root)
    sent = study(folder / "sent", 5)
    assert send(sent).returncode == 0
    end, answers = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        time.sleep(10)
        assert echo()
        answers += 1
    assert state(box, root) == before
    figures[f"answers to scanners in {seconds:.0f} s without the uplink"] = answers
    alarms = [f"{alarm['severity']} {alarm['text']}" for alarm in json.loads(box.run("dcmgate --json status --once"))["alarms"]]
    with pacs(folder / "pacs") as store:
        wanted = dict(content(path) for path in sent).items()
        wait_until(lambda: wanted <= arrived(store, len(sent), 20).items(), 600, "all has arrived", every=0)
    assert state(box, root) == before
    return alarms


HURRY, DAY = 360, 86400


def test_a_day_without_the_uplink_restarts_and_reboots_nothing(serving: GatewayStrategy, root: RootShellProtocol,
                                                               figures: dict[str, Any], tmp_path: Path) -> None:
    """On a clock that goes 360 times as fast, until the next boot."""
    root.put(Path(__file__).with_name("hurried.py"), "/run/hurried.py")
    for unit in ("forwarder", "keeper", "watch"):
        place = f"/run/systemd/system/dcmgate-{unit}.service.d"
        line = f"[Service]\\nExecStart=\\nExecStart=/usr/lib/dcmgate/bin/python -I /run/hurried.py {HURRY} {unit}\\n"
        root.run(f"mkdir -p {place} && printf '{line}' >{place}/90-hurried.conf")
    root.run("systemctl daemon-reload && systemctl restart dcmgate-forwarder dcmgate-keeper dcmgate-watch", 120)
    said = outage(DAY / HURRY + 10, serving, root, figures, tmp_path)
    assert any(line.startswith("critical") and "for pacs, the oldest for" in line for line in said), said


def test_pid_1_that_stands_still_is_reset_by_the_board(serving: GatewayStrategy, root: RootShellProtocol,
                                                      figures: dict[str, Any]) -> None:
    keep(figures, "PID 1 stands still", serving, lambda: root.fire("echo 1 >/sys/fs/cgroup/init.scope/cgroup.freeze"))
    assert boot(serving)["reset"] == "watchdog"


def test_a_kernel_panic_resets_the_machine_and_is_told(serving: GatewayStrategy, root: RootShellProtocol,
                                                      figures: dict[str, Any]) -> None:
    keep(figures, "kernel panic", serving, lambda: root.fire("echo c >/proc/sysrq-trigger"))
    said = boot(serving)
    assert said["reset"] == "panic", said
    assert "sysrq triggered crash" in said["text"]
    assert "panic" in serving.run("dcmgate status --once | head -20")


def test_a_reload_that_takes_longer_than_the_board_waits_is_no_reset(serving: GatewayStrategy, root: RootShellProtocol) -> None:
    """Changed ports have the service manager reload its units; meanwhile it pings nobody."""
    before = boot(serving)["boot"]
    patience = "busctl get-property org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager " \
               "RuntimeWatchdogUSec"
    assert root.run(patience) == "t 15000000"
    root.run(f"mkdir -p {GENERATORS} && printf '#!/bin/sh\\nexec sleep {SLOW_RELOAD}\\n' >{GENERATORS}/slow && "
             f"chmod 755 {GENERATORS}/slow && echo other >>/var/etc/ports")
    try:
        took = float(root.run("s=$(date +%s); systemctl restart dcmgate-apply.service; echo $(( $(date +%s) - s ))", 300))
    finally:
        root.run(f"rm {GENERATORS}/slow", 120)
    assert took >= SLOW_RELOAD
    wait_until(echo, 120, "a C-ECHO is answered")
    assert boot(serving)["boot"] == before
    assert root.run(patience) == "t 15000000"


def test_a_spool_whose_disk_fails_costs_one_reboot_and_then_degraded_mode(serving: GatewayStrategy, root: RootShellProtocol,
                                                                        figures: dict[str, Any], tmp_path: Path) -> None:
    sent = study(tmp_path / "sent", 2)
    assert send(sent).returncode == 0
    keep(figures, "spool's disk fails", serving, lambda: root.run("xfs_io -x -c shutdown /var/spool/dcmgate"))
    first = boot(serving)
    assert first["reset"] == "escalation" and "spool" in first["text"], first
    root.run("test -s /sys/firmware/efi/efivars/DcmgateBudget-*")
    root.run("xfs_io -x -c shutdown /var/spool/dcmgate")
    took = wait_until(lambda: degraded(root), 150, lambda: root.run("journalctl -b -n 60 --no-pager"))
    figures["seconds to degraded mode"] = round(took, 1)
    wait_until(echo, 30, "a C-ECHO is answered in degraded mode")
    assert send(sent).returncode != 0
    time.sleep(10)
    assert boot(serving)["boot"] == first["boot"], "no reboot loop"
    assert "degraded mode" in serving.run("dcmgate status --once; true")
    # At the next boot there is no spool at all: degraded mode at once, and no reboot.
    part = root.run("readlink -f /dev/disk/by-partlabel/dcmgate-spool")
    root.run(f"dd if={part} of=/var/lib/header bs=1M count=17 && sync", 120)
    root.run(f"dd if=/dev/zero of={part} bs=1M count=17 conv=fsync", 120)
    serving.transition("off")
    serving.transition("serving")
    serving.target.activate(root)
    second = boot(serving)
    assert (second["boot"], second["reset"]) == (first["boot"] + 1, "cut")
    wait_until(lambda: degraded(root), 60, "degraded mode without a spool")
    assert send(sent).returncode != 0
    # It comes back: what was acknowledged is there.
    root.run(f"dd if=/var/lib/header of={part} bs=1M conv=fsync && rm /var/lib/header && udevadm settle", 120)
    root.run("dcmgate escalate --again receiver && systemctl start dcmgate-keeper dcmgate-forwarder", 300)
    wait_until(lambda: send(sent).returncode == 0, 120, "the image is taken")
    with pacs(tmp_path / "pacs") as folder:
        assert arrived(folder, len(sent), 400) == dict(content(path) for path in sent)


@pytest.mark.full(minutes=62)
@pytest.mark.timeout(5400)
def test_an_hour_without_the_uplink_restarts_and_reboots_nothing(serving: GatewayStrategy, root: RootShellProtocol,
                                                                 figures: dict[str, Any], tmp_path: Path) -> None:
    outage(3600, serving, root, figures, tmp_path)
