"""The tracer counts every call of every thread, and kills before it is made or after it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import syscalls

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import json, os, sys, threading, time
from tests.support.syscalls import AFTER, BEFORE, Victim, living

place = sys.argv[1]

def body():
    fd = os.open(place, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    def write():
        for at in range(10):
            os.pwrite(fd, b"x", at)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    os.fdatasync(fd)
    return 3

def beside(pid):
    made = os.fork()
    if made == 0:
        os._exit(7 if living(pid) else 8)
    return [made]

whole = Victim(body).watch()
first = whole.calls.index("pwrite64") + 1
killed = []
for number, where in ((0, BEFORE), (0, AFTER), (4, BEFORE), (4, AFTER)):
    end = Victim(body).watch(first + number, where)
    killed.append([end.killed, end.call, end.status, os.path.getsize(place)])
waiting = Victim(lambda: time.sleep(30) or 0, beside=beside)
ended = waiting.watch()
print(json.dumps({
    "calls": whole.calls, "status": whole.status, "killed": killed, "beyond": Victim(body).watch(999).status,
    "asking": len(Victim(body, asking=True).watch().calls),
    "moment": Victim(lambda: time.sleep(30) or 0).kill_after(0.01).killed, "early": Victim(body).kill_after(20).status,
    "late": Victim(lambda: time.sleep(30) or 0, seconds=0.1).watch().late,
    "helpers": [ended.status, *waiting.statuses.values()]}))
"""


def test_kills_come_exactly_where_they_should(tmp_path: Path) -> None:
    """In a process of its own: it needs a single thread, and the alarm clock that pytest's time-out uses."""
    if why := syscalls.available():
        pytest.skip(why)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True,
                          check=True, timeout=60)
    said = json.loads(done.stdout)
    assert said["calls"].count("pwrite64") == 10 and said["calls"][-1] == "fdatasync" and said["status"] == 3
    assert said["killed"] == [[True, "pwrite64", -9, 0], [True, "pwrite64", -9, 1], [True, "pwrite64", -9, 4],
                              [True, "pwrite64", -9, 5]]
    assert said["beyond"] == 3 and said["asking"] >= len(said["calls"])
    assert said["moment"] and said["early"] == 3 and said["late"]
    assert said["helpers"] == [-15, 7]
