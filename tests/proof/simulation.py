"""Deterministic simulation: the real stages on a simulated disk, clock and network, against I1 to I9.

    python -m tests.proof.simulation --walks 100 --seed 7     walks 7, 8, … 106, each a few dozen steps
    python -m tests.proof.simulation --seed 23 --show         walk 23 alone, step by step
    python -m tests.proof.simulation --script FILE            what a failure's shortest script does

A *walk* is all that one seed says: a setting, a script of weighted random steps
(`simulation_steps.VOCABULARY`), and the quiet end. The same vocabulary drives a
hypothesis state machine, which is better at the strange and the short. Either
way a failure is a script; it is shortened to the steps that it needs, and can be
run again as it stands.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.proof.simulation_box import Setting
from tests.proof.simulation_disk import ENDLESS
from tests.proof.simulation_examine import quiet_end
from tests.proof.simulation_steps import VOCABULARY, Script, Steps
from tests.proof.simulation_world import World

STEPS = 60


@dataclass(slots=True)
class Case:
    """One walk: what it is made of, and what came of it. `found`: (check, detail) of the first step that went wrong."""

    setting: Setting
    script: Script
    found: list[tuple[str, str]] = field(default_factory=list)
    steps: int = 0
    acknowledged: int = 0
    done: Counter[str] = field(default_factory=Counter)


def case_of(seed: int, steps: int = STEPS) -> Case:
    """Everything that a seed says."""
    dice = random.Random(seed)
    setting = Setting(dice=dice.randrange(1 << 30), total=dice.choice((ENDLESS, ENDLESS, 400_000)),
                      takes_direct=dice.random() < 0.7, keeps_first=dice.random() < 0.5, window=dice.choice((1, 3, 8)),
                      associations=dice.choice((1, 1, 2)))
    names = list(VOCABULARY)
    # Of the rarer things, some worlds know only a few: so that long undisturbed stretches happen too.
    weights = [weight if weight > 3 or dice.random() < 0.6 else 0 for weight, _ in VOCABULARY.values()]
    return Case(setting, [(name, {argument: dice.randint(0, most) for argument, most in VOCABULARY[name][1].items()})
                          for name in dice.choices(names, weights, k=steps)])


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(prefix="simulation-", dir="/dev/shm") as folder:
        yield Path(folder)


def play(case: Case, folder: Path, *, show: bool = False) -> Case:
    """Run it to its end, or to the first step after which a check does not hold."""
    with World(folder, case.setting) as world:
        steps = Steps(world)
        oracle = world.oracle
        for name, arguments in case.script:
            if show:
                print(f"{world.clock.powered_ns / 1e9:12.1f}  {name} {arguments}", flush=True)
            steps.do(name, arguments)
            case.steps += 1
            if oracle.found:
                break
        else:
            quiet_end(world)
        case.found = list(oracle.found)
        case.acknowledged = oracle.acknowledged
        case.done = oracle.done
    return case


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    steps = acknowledged = failed = 0
    done: Counter[str] = Counter()
    with scratch() as folder:
        for seed in range(options.seed, options.seed + options.walks):
            case = play(case_of(seed), folder, show=options.show)
            steps += case.steps
            acknowledged += case.acknowledged
            done += case.done
            if case.found:
                failed += 1
                print(f"walk {seed}, step {case.steps} {case.script[case.steps - 1]}:", flush=True)
                for name, detail in case.found[:4]:
                    print(f"   {name}: {detail}")
    print(f"{options.walks} walks, {steps} steps, {acknowledged} acknowledged, {failed} failed,"
          f" {time.monotonic() - began:.1f} s")
    for name, count in sorted(done.items()):
        print(f"{count:8} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
