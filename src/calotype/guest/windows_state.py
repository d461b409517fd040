"""The state of Windows Setup, and the verdict that follows from it.

Microsoft's page "Windows Setup States" documents six values, kept in two places that must agree:
``ImageState`` in the SOFTWARE hive and ``State.ini``. (``GeneralizationState`` 7 stands on every installed
Windows and proves nothing.)
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from calotype.guest.proof import Finding
from calotype.guest.steps.step import Concern
from calotype.guest.windows_facts import Facts
from calotype.model import Verdict

SYSPREP = "sysprep /generalize /oobe /shutdown /mode:vm"
GENERAL = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
_SET_UP = 2  # SetupType: Setup goes on at the next start
_DONE = 7  # GeneralizationState


class ImageState(NamedTuple):
    """A state of Windows Setup (Microsoft's page "Windows Setup States"): what it means, and the cure."""

    verdict: Verdict
    meaning: str
    cure: str


STATES = {
    GENERAL: ImageState(Verdict.GENERALIZED, "generalized; each clone starts in OOBE", ""),
    "IMAGE_STATE_COMPLETE": ImageState(
        Verdict.SPECIALIZED,
        "Windows is set up and is one machine: Sysprep did not run, or the image was started after it",
        f"run {SYSPREP} in the VM",
    ),
    "IMAGE_STATE_UNDEPLOYABLE": ImageState(
        Verdict.MIXED,
        "a phase of Setup began and did not end; as it lies there it can never be deployed",
        "go back to before Sysprep was started, mend what its log says, and run it again",
    ),
    "IMAGE_STATE_GENERALIZE_RESEAL_TO_AUDIT": ImageState(
        Verdict.MIXED,
        "generalized, but a clone starts in audit mode, where nobody provisions it",
        f"start it, and run {SYSPREP} (with /oobe, without /audit)",
    ),
    "IMAGE_STATE_SPECIALIZE_RESEAL_TO_OOBE": ImageState(
        Verdict.SPECIALIZED,
        "it waits for OOBE, but as the machine that it was: /generalize was left out",
        f"start it, and run {SYSPREP}",
    ),
    "IMAGE_STATE_SPECIALIZE_RESEAL_TO_AUDIT": ImageState(
        Verdict.SPECIALIZED,
        "one machine in audit mode, which somebody still works on",
        f"finish the work in audit mode, and run {SYSPREP}",
    ),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the reasons for it."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def judge(facts: Facts, findings: Collection[Finding]) -> Judgement:
    """The verdict that the facts bear, and the reasons for it."""
    state = by_state(facts)
    if facts.problems:
        # Generalizing ends with a clean shutdown: a disk that was not left clean, and says that it is
        # one machine, is one.
        if state.verdict is Verdict.SPECIALIZED:
            return Judgement(state.verdict, (*state.reasons, *facts.problems))
        return Judgement(Verdict.UNKNOWN, tuple(_with_cure(problem) for problem in facts.problems))
    if state.verdict is not Verdict.GENERALIZED:
        return state
    grave = tuple(f"{f.step}: {f.left[0]}" for f in findings if f.concern is not Concern.TRACE)
    return Judgement(Verdict.MIXED, grave) if grave else Judgement(Verdict.GENERALIZED)


def by_state(facts: Facts) -> Judgement:
    """What the two places say, and whether they agree."""
    said = {"the registry": facts.registry_state, "State.ini": facts.file_state}
    states = [state for state in said.values() if state is not None]
    if not states:
        return Judgement(
            Verdict.UNKNOWN, ("neither the registry nor State.ini says in what state Windows is",)
        )
    strange = [state for state in states if state not in STATES]
    if strange:
        return Judgement(Verdict.UNKNOWN, (f"{strange[0]} is no state of Windows Setup",))
    if len(states) == 2 and states[0] == states[1]:
        state = STATES[states[0]]
        if not state.cure:
            return Judgement(state.verdict)
        words = f"image-state: {states[0]}: {state.meaning}; cure: {state.cure}"
        return Judgement(state.verdict, (words,))
    words = " and ".join(f"{who} says {state or 'nothing'}" for who, state in said.items())
    verdicts = {STATES[state].verdict for state in states}
    return Judgement(
        Verdict.SPECIALIZED if verdicts == {Verdict.SPECIALIZED} else Verdict.MIXED,
        (f"image-state: {words}: they must agree on {GENERAL}; cure: run {SYSPREP}",),
    )


def contradictions(facts: Facts) -> Iterator[str]:
    """What speaks against a state of generalized."""
    if by_state(facts).verdict is not Verdict.GENERALIZED:
        return
    if facts.setup_type not in (None, _SET_UP):
        yield f"SetupType is {facts.setup_type}: Setup will not go on at the next start"
    if facts.generalization not in (None, _DONE):
        yield f"GeneralizationState is {facts.generalization}: Sysprep did not finish"


def _with_cure(problem: str) -> str:
    if problem.startswith("Windows "):
        return (
            f"{problem}; cure: start it, shut it down (shutdown /s /t 0), and take the disk again"
        )
    return problem
