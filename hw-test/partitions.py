"""The disk of the virtual box, from outside, while it is off: its partitions, and the files of its boot menu."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MENU = "::/EFI/Linux"


@dataclass(frozen=True)
class Partition:
    name: str
    type: str
    start: int
    size: int


class Disk:
    """`run` runs a program of the tools tree and returns what it says."""

    def __init__(self, path: Path, run: Callable[..., str]) -> None:
        self.path = path
        self._run = run

    def partitions(self) -> list[Partition]:
        table = json.loads(self._run("sfdisk", "--json", self.path))["partitiontable"]
        return [Partition(p.get("name", ""), p["type"], 512 * p["start"], 512 * p["size"]) for p in table["partitions"]]

    def named(self, name: str) -> list[Partition]:
        """In the order of the disk: a root comes before its verity."""
        return [p for p in self.partitions() if p.name == name]

    def flip(self, partition: Partition, offset: int) -> None:
        """Change one bit of one byte."""
        with self.path.open("r+b") as file:
            file.seek(partition.start + offset)
            byte = file.read(1)[0]
            file.seek(partition.start + offset)
            file.write(bytes([byte ^ 1]))

    def menu(self) -> list[str]:
        lines = self._run("mdir", "-b", "-i", self._esp(), MENU).split()
        return sorted(line.rpartition("/")[2] for line in lines)

    def put(self, source: Path, name: str) -> None:
        self._run("mcopy", "-o", "-i", self._esp(), source, f"{MENU}/{name}")

    def get(self, name: str, target: Path) -> None:
        self._run("mcopy", "-o", "-i", self._esp(), f"{MENU}/{name}", target)

    def rename(self, name: str, other: str) -> None:
        self._run("mren", "-i", self._esp(), f"{MENU}/{name}", f"{MENU}/{other}")

    def delete(self, name: str) -> None:
        self._run("mdel", "-i", self._esp(), f"{MENU}/{name}")

    def _esp(self) -> str:
        return f"{self.path}@@{self.named('esp')[0].start}"
