"""Boots: what the last boot left behind, and the marker of this one (`policy.resets`).

    /var/lib/dcmgate-system/running    there while a boot has not ended in order; its text: the boot, and why we rebooted
    bootstatus                         the board's watchdog: whether it was the one who reset the machine
    pstore                             the kernel's last words (the files that systemd-pstore put aside, or the raw ones)

What was found is told in `/run/dcmgate-system/boot.json`, for status, keeper and console.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.policy.resets import Reset, Traces, cause
from appliance.spool.durable import write_whole

STATE = Path("/var/lib/dcmgate-system")
RUN = Path("/run/dcmgate-system")
BOARDS = Path("/sys/class/watchdog")
PSTORES = (Path("/sys/fs/pstore"), Path("/var/lib/systemd/pstore"))

MARKER, NOTE = "running", "boot.json"
CARD_RESET = 0x20
"""WDIOF_CARDRESET (linux/watchdog.h): the card previously reset the CPU."""

PANIC = ("Kernel panic", "Oops", "BUG: ", "watchdog: BUG")
LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Boot:
    """`number`: of this boot since the box was made; 0 where nothing is kept. `id`: the kernel's."""

    number: int
    id: str
    reset: str
    text: str


def begin(state: Path = STATE, run: Path = RUN, boards: Path = BOARDS, pstores: tuple[Path, ...] = PSTORES,
          boot_id: str = "", kept: bool | None = None, remark: str = "") -> Boot:
    """Find out why this boot began, mark it as running, and tell, with the remark. OSError where nothing can be told."""
    before = _read(state / MARKER)
    this = boot_id or Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    told = read(run)
    if told is not None and told.id == this:      # started again within the same boot
        return told
    seen = set(map(str, before.get("pstore", [])))
    words = {path: text for path, text in _last_words(pstores).items() if path not in seen}
    traces = Traces(kept=_may_keep(state) if kept is None else kept, known=bool(before), running=bool(before.get("running")),
                    escalation=str(before.get("escalation", "")), panic=next(iter(words.values()), ""), board=_board(boards))
    reset, text = cause(traces)
    text = f"{text}; {remark}" if remark else text
    boot = Boot(int(before.get("number", 0)) + 1 if traces.kept else 0, this, str(reset), text)
    if traces.kept:
        _write(state / MARKER, {"number": boot.number, "id": this, "running": True, "escalation": "",
                                "pstore": sorted({*seen, *words})[-64:]})
    _write(run / NOTE, asdict(boot), sync=False)
    return boot


def end(state: Path = STATE) -> None:
    """This boot ends in order."""
    _change(state, running=False)


def reboots(fault: str, state: Path = STATE) -> None:
    """This boot ends because of that fault, by our own decision."""
    _change(state, escalation=fault)


def read(run: Path = RUN) -> Boot | None:
    """What was told of this boot; None where nothing was."""
    with suppress(OSError, ValueError, TypeError):
        return Boot(**json.loads((run / NOTE).read_text()))
    return None


def is_bad(boot: Boot) -> bool:
    """Whether a person should look at it."""
    return boot.reset in (Reset.ESCALATION, Reset.PANIC, Reset.WATCHDOG, Reset.CUT)


def _board(boards: Path) -> bool | None:
    found = None
    for status in sorted(boards.glob("*/bootstatus")):
        with suppress(OSError, ValueError):
            found = bool(found) or bool(int(status.read_text().strip() or "0", 0) & CARD_RESET)
    return found


def _last_words(pstores: tuple[Path, ...]) -> dict[str, str]:
    """Names of kernel logs that end in a panic, and their telling line: an image of it is worth more than our words."""
    found: dict[str, str] = {}
    for folder in pstores:
        for path in sorted(folder.rglob("dmesg*")) if folder.is_dir() else []:
            with suppress(OSError):
                lines = path.read_bytes()[:LONGEST].decode("utf-8", "replace").splitlines()
                said = [line for line in lines if any(word in line for word in PANIC)]
                if said:
                    found[path.name] = " ".join(said[0].split("]", 1)[-1].split())[:160]
    return found


def _may_keep(state: Path) -> bool:
    """Whether what is written there is there at the next boot: a `/var` that lives in memory keeps nothing."""
    try:
        kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
        place = max((name for name in kinds if state == Path(name) or Path(name) in state.parents), key=len)
        return state.is_dir() and kinds[place] != "tmpfs" and os.access(state, os.W_OK)
    except (OSError, ValueError):
        return False


def _change(state: Path, **fields: object) -> None:
    before = _read(state / MARKER)
    if before:
        _write(state / MARKER, {**before, **fields})


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, value: dict[str, object], *, sync: bool = True) -> None:
    write_whole(path, json.dumps(value) + "\n", 0o644, sync=sync)
