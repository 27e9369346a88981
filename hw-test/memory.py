"""Memory of services, measured in one way wherever it is asked for: what each holds for itself. The page cache is nobody's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

SERVICES = ("receiver", "forwarder", "keeper", "tunnel@archive", "observer", "watch", "page", "metrics")


def held(run: Callable[[str], str], units: Iterable[str] = SERVICES) -> dict[str, int]:
    """Anonymous memory in bytes of each `dcmgate-UNIT.service` that is running (cgroup-v2, memory.stat)."""
    each = ("group=$(systemctl show -P ControlGroup dcmgate-$unit.service); "
            "[ -z $group ] || sed -n \"s/^anon /$unit /p\" /sys/fs/cgroup$group/memory.stat")
    said = run(f"for unit in {' '.join(units)}; do {each}; done")
    return {name: int(value) for name, value in map(str.split, said.splitlines())}


def left(run: Callable[[str], str]) -> int:
    """Bytes that the box has for more (MemAvailable)."""
    return int(run("sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
