"""The system below: the kernel's settings, what a USB port takes, nothing left of a crash."""

from __future__ import annotations

import time
from pathlib import Path

from gateway import GatewayStrategy
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ROOT / "rootfs/usr/lib/sysctl.d/60-dcmgate.conf"


def test_the_kernel_runs_by_the_settings_of_the_image(serving: GatewayStrategy) -> None:
    """Each line of our sysctl file, as it is now."""
    wanted = {}
    for line in SETTINGS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            wanted[name.strip()] = value.strip()
    names = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in wanted)
    lines = serving.run(f"for f in {names}; do echo \"$f $(cat $f 2>&1)\"; done").splitlines()
    found = {line.split()[0].removeprefix("/proc/sys/").replace("/", "."): line.partition(" ")[2] for line in lines}
    unread = {name for name, value in found.items() if "Permission denied" in value}
    assert unread <= {"net.core.bpf_jit_harden"}         # which root alone may read
    assert {name: found[name] for name in wanted if name not in unread and found[name] != wanted[name]} == {}


def test_the_kernel_s_own_locks(serving: GatewayStrategy) -> None:
    command_line = serving.run("cat /proc/cmdline")
    for word in ("lockdown=integrity", "module.sig_enforce=1", "debugfs=off", "init_on_alloc=1", "slab_nomerge"):
        assert word in command_line.split()
    assert "[integrity]" in serving.run("cat /sys/kernel/security/lockdown")
    assert serving.run("cat /sys/module/module/parameters/sig_enforce") == "Y"
    assert serving.run("cd /proc/sys/kernel && cat softlockup_panic panic_on_rcu_stall max_rcu_stall_to_panic") == "1\n1\n2"


def test_a_crash_leaves_no_memory_behind(serving: GatewayStrategy) -> None:
    assert serving.run("ulimit -H -c") == "0"
    assert serving.run("cat /proc/sys/kernel/core_pattern") == "|/bin/false"


def test_what_the_services_share_is_their_group_s(serving: GatewayStrategy) -> None:
    """Whoever came first: the files that SQLite makes beside the ledger, and the block that the spool's probe writes."""
    wait_until(lambda: serving.run("ls /var/spool/dcmgate/probe || true"), 120, "the spool's disk is probed", every=5)
    lines = serving.run("stat -c '%a %G %n' /var/spool/dcmgate/ledger.sqlite* /var/spool/dcmgate/probe").splitlines()
    assert len(lines) >= 4
    assert {line.split("/")[0] for line in lines} == {"660 dcmgate "}, lines


def test_a_usb_port_takes_no_keyboard(serving: GatewayStrategy) -> None:
    """Its interface stays switched off; a stick, which has another class, works (it set this box up)."""
    before = serving.run("grep -c . /proc/bus/input/devices || true")
    serving.target.activate(serving.stick)
    serving.stick.plug_keyboard()
    try:
        def keyboard() -> str:
            return serving.run("for d in /sys/bus/usb/devices/*:*; do [ \"$(cat $d/bInterfaceClass)\" = 03 ] && "
                               "echo $(cat $d/authorized) $(readlink $d/driver); done; true")

        wait_until(keyboard, 60, "the keyboard is seen")
        time.sleep(3)
        assert keyboard() == "0"
        assert serving.run("grep -c . /proc/bus/input/devices || true") == before
    finally:
        serving.stick.pull_keyboard()


def test_time_comes_from_the_configured_servers(serving: GatewayStrategy) -> None:
    assert serving.run("cat /run/dcmgate-system/dcmgate.sources") == "server 10.99.2.10 iburst"
    assert serving.run("systemctl is-active chrony.service") == "active"
