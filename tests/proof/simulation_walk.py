"""Walks: scripts of steps made from a seed, played on a world, and cut down to what a failure needs."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.proof.simulation_box import Setting
from tests.proof.simulation_disk import ENDLESS
from tests.proof.simulation_examine import quiet_end
from tests.proof.simulation_steps import VOCABULARY, Script, Steps
from tests.proof.simulation_world import World
from tests.support.memory import in_memory

STEPS = 60
PLACE = "dcmgate-simulation-"
NEEDED = 64 << 20
"""Bytes of memory, more than a world has ever filled."""

MOST_PLAYS = 400
"""Plays that one failure's shortening may cost."""


@dataclass(slots=True)
class Case:
    """A setting and a script, and what came of them. `found`: (check, detail) of the first step that went wrong.

    `lost`: acknowledged objects that some destination lacks and the spool does not hold either; `altered`: what a
    destination got and nobody sent so; `unaccounted`: findings of I2.
    """

    setting: Setting
    script: Script
    found: list[tuple[str, str]] = field(default_factory=list)
    steps: int = 0
    acknowledged: int = 0
    lost: int = 0
    altered: int = 0
    unaccounted: int = 0
    done: Counter[str] = field(default_factory=Counter)
    in_the_end: bool = False
    """Whether the quiet end was reached."""

    def as_json(self) -> dict[str, Any]:
        """What is needed to play it again; `from_json` takes it back."""
        return {"setting": asdict(self.setting), "script": [[name, arguments] for name, arguments in self.script]}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Case:
        return cls(Setting(**body["setting"]), [(name, arguments) for name, arguments in body["script"]])


def case_of(seed: int, steps: int = STEPS) -> Case:
    """Everything that a seed says."""
    dice = random.Random(seed)
    setting = Setting(dice=dice.randrange(1 << 30), total=dice.choice((ENDLESS, ENDLESS, 400_000)),
                      takes_direct=dice.random() < 0.7, keeps_first=dice.random() < 0.5, window=dice.choice((1, 3, 8)),
                      associations=dice.choice((1, 1, 2)))
    # Of the rarer things, a world knows only some: so that long undisturbed stretches happen, too.
    weights = [weight if weight > 3 or dice.random() < (0.1 if name == "lose_ledger" else 0.6) else 0
               for name, (weight, _) in VOCABULARY.items()]
    return Case(setting, [(name, {argument: dice.randint(0, most) for argument, most in VOCABULARY[name][1].items()})
                          for name in dice.choices(list(VOCABULARY), weights, k=steps)])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory; those of processes that were killed go."""
    with in_memory(PLACE, NEEDED, Path(tempfile.gettempdir())) as folder:
        yield folder


def play(case: Case, folder: Path, tell: Callable[[str], None] = lambda line: None, *, end: bool = True) -> Case:
    """Run it, with the quiet end if `end`, or to the first step after which a check does not hold."""
    with World(folder, case.setting) as world:
        steps, oracle = Steps(world), world.oracle
        for name, arguments in case.script:
            tell(f"{world.clock.powered_ns / 1e9:12.1f}  {name} {arguments}")
            steps.do(name, arguments)
            case.steps += 1
            if oracle.found:
                break
        else:
            if end:
                case.in_the_end = True
                quiet_end(world)
                case.lost = _lost(world)
        case.found = list(oracle.found)
        case.acknowledged, case.done = oracle.acknowledged, oracle.done
        case.altered = sum(name.startswith("I5") for name, _ in case.found)
        case.unaccounted = sum(name.startswith("I2") for name, _ in case.found)
    return case


def _lost(world: World) -> int:
    oracle, disk = world.oracle, world.disk
    count = 0
    for one in oracle.instances.values():
        if one.owed and not all(oracle.delivered(one, duty) for duty in oracle.counted(one)):
            held = disk.durable(str(world.spool.object_path(one.number)))
            count += held is None or held[4096:] != one.data
    return count


def shrink(case: Case, folder: Path) -> Case:
    """The same failure with as few steps as can be found: pieces are left out, halves first, as long as that check fails."""
    name = case.found[0][0]
    best = case
    script = case.script[:case.steps]
    plays, size = 0, max(1, len(script) // 2)
    while size:
        at = 0
        while at < len(script) and plays < MOST_PLAYS:
            plays += 1
            shorter = play(Case(case.setting, script[:at] + script[at + size:]), folder, end=case.in_the_end)
            if any(found[0] == name for found in shorter.found):
                best, script = shorter, shorter.script[:shorter.steps]
            else:
                at += size
        size //= 2
    best.script = script
    return best
