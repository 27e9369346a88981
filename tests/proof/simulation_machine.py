"""The same steps, driven by hypothesis: a rule for each word of the vocabulary, and the quiet end at the end.

Hypothesis chooses which rules an example knows at all, reuses what it has seen,
and shortens a failure by itself. `Simulation.TestCase` is a test; `explore` runs
many examples from one seed and gives the shortest failure, if there is one.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.proof.simulation_box import Setting
from tests.proof.simulation_disk import ENDLESS
from tests.proof.simulation_examine import quiet_end
from tests.proof.simulation_steps import VOCABULARY, Steps
from tests.proof.simulation_walk import Case, scratch
from tests.proof.simulation_world import World

STEPS = 50


class Violated(AssertionError):
    """A check does not hold."""


class Machine(RuleBasedStateMachine):
    """One world. `last_failure` is the case that failed last: after a shrink, the shortest."""

    last_failure: Case | None = None
    totals = Case(Setting(), [])
    examples = 0

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(dice=st.integers(0, 1000), small=st.booleans(), takes_direct=st.booleans(), keeps_first=st.booleans(),
                window=st.sampled_from((3, 1, 8)), associations=st.sampled_from((1, 2)))
    def new_world(self, dice: int, small: bool, takes_direct: bool, keeps_first: bool, window: int, associations: int) -> None:
        self._folder = scratch()
        self.case = Case(Setting(dice, 400_000 if small else ENDLESS, takes_direct, keeps_first, window, associations), [])
        self.world = World(self._folder.__enter__(), self.case.setting).__enter__()
        self.steps = Steps(self.world)

    def step(self, name: str, arguments: dict[str, int]) -> None:
        self.case.script.append((name, arguments))
        self.case.steps += 1
        self.steps.do(name, arguments)
        self._judge()

    def _judge(self) -> None:
        assert self.world is not None
        if self.world.oracle.found:
            self.case.found = list(self.world.oracle.found)
            Machine.last_failure = self.case
            raise Violated(f"{self.case.found[0][0]}: {self.case.found[0][1]}")

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if not self.world.oracle.found:
                quiet_end(self.world)
                self._judge()
        finally:
            Machine.examples += 1
            Machine.totals.steps += self.case.steps
            Machine.totals.acknowledged += self.world.oracle.acknowledged
            Machine.totals.done += self.world.oracle.done
            self.world.__exit__()
            self._folder.__exit__(None, None, None)


def _add_rules() -> None:
    for name, (weight, arguments) in VOCABULARY.items():
        if not weight:
            continue

        def step(self: Machine, *, name: str = name, **values: int) -> None:
            self.step(name, values)
        step.__name__ = name
        values: dict[str, Any] = {argument: st.integers(0, most) for argument, most in arguments.items()}
        # Hypothesis gives every rule the same chance: what happens often has several.
        for copy in range(max(1, weight // 2)):
            setattr(Machine, f"{name}_{copy}" if copy else name, rule(**values)(step))  # type: ignore[no-untyped-call]


_add_rules()


def explore(number: int, examples: int) -> Case | None:
    """So many examples from that seed; the shortest failure, None where every one held."""
    Machine.last_failure = None
    how = settings(max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None, print_blob=False,
                   suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink))
    try:
        run_state_machine_as_test(seed(number)(Machine), settings=how)
    except Violated:
        return Machine.last_failure
    return None
