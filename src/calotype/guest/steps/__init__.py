"""The steps of generalizing, each in a file of its own with a record named ``STEP``."""

import importlib
import pkgutil
from collections.abc import Collection

from calotype.errors import InvalidInput
from calotype.guest.steps.step import SysprepStep, concerned

__all__ = ["STEPS", "SysprepStep", "select"]


def _discover() -> tuple[SysprepStep, ...]:
    found = [
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    ]
    steps = [module.STEP for module in found if hasattr(module, "STEP")]
    return tuple(sorted(steps, key=lambda step: (step.order, step.name)))


#: All steps, in the order in which they are performed.
STEPS = _discover()


def select(
    distribution: Collection[str],
    *,
    enable: Collection[str] = (),
    disable: Collection[str] = (),
) -> list[SysprepStep]:
    """The steps for a guest whose distribution goes by any of these identifiers.

    Raises:
        InvalidInput: a name in ``enable`` or ``disable`` is no step's, or is in both.
    """
    names = {step.name for step in STEPS}
    unknown = sorted({*enable, *disable} - names)
    if unknown:
        raise InvalidInput(
            f"there is no step named {', '.join(unknown)}",
            hint=f"the steps are: {', '.join(step.name for step in STEPS)}",
        )
    if both := sorted({*enable} & {*disable}):
        raise InvalidInput(f"{', '.join(both)} is both enabled and disabled")
    return [
        step
        for step in concerned(STEPS, distribution)
        if step.name not in disable and (step.default or step.name in enable)
    ]
