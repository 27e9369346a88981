"""Cuts of the power while scanners send. What the box has not flushed is lost then; no image that it acknowledged may be."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dicom import arrived, content, pacs, sender, study
from gateway import GatewayStrategy
from volatile import VolatileDisk
from waiting import seconds_until, wait_until

SENT = re.compile(r"Sending file: (\S+)|Received Store Response \((\w+)")


def acknowledged(said: str) -> set[str]:
    """The files that a storescu has had a success for, by what it said."""
    done, file = set(), ""
    for name, status in SENT.findall(said):
        if name:
            file = name
        elif status == "Success":
            done.add(file)
    return done


class Scanner(threading.Thread):
    """Sends one small study after the other, as long as it is open. `acknowledged`: what of them, as storescu has seen it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._over = threading.Event()
        self._now: subprocess.Popen[str] | None = None
        self.acknowledged: list[Path] = []

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            paths = study(self._folder / str(number), 6)
            with subprocess.Popen(sender(paths), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as self._now:
                said = self._now.communicate(timeout=600)[0]
            self.acknowledged += [Path(name) for name in acknowledged(said)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._now is not None:
            self._now.terminate()
        self.join(120)
        assert not self.is_alive()


def cut_under_load(moments: Sequence[Callable[[], object]], box: GatewayStrategy, disk: VolatileDisk, folder: Path,
                   figures: dict[str, Any], then: Callable[[], object] = lambda: None) -> None:
    """A cut where each of `moments` returns; it is called when a first image is acknowledged. `then`: what else is looked at
    after each. Every image that was acknowledged before a cut is there after it, as it was; it always boots; the balance is
    exact."""
    identity = box.run("cat /etc/machine-id")
    kept: list[Path] = []
    for number, moment in enumerate(moments):
        with Scanner(folder / f"cut{number}") as scanner:
            wait_until(lambda scanner=scanner: scanner.acknowledged, 120, "a first image is acknowledged", every=0.2)
            moment()
            disk.cut()
        kept += scanner.acknowledged
        disk.on()
        assert box.run("cat /etc/machine-id; hostname").split() == [identity, "gate1"], "it is set up once"
        assert json.loads(box.run("dcmgate balance --json", 120))["unaccounted"] == 0
        then()
    with pacs(folder / "pacs") as store:
        wanted = dict(content(path) for path in kept)
        seconds_until(lambda: wanted.keys() <= arrived(store, len(wanted), 20).keys(), 600, every=0)
        got = arrived(store, len(wanted), 20)
    lost = [uid for uid in wanted if uid not in got]
    altered = [uid for uid, data in wanted.items() if uid in got and got[uid] != data]
    figures[f"{len(moments)} cuts under load"] = {"acknowledged": len(wanted), "lost": len(lost), "altered": len(altered)}
    assert (lost, altered) == ([], [])
    assert json.loads(box.run("dcmgate balance --json", 120))["unaccounted"] == 0
