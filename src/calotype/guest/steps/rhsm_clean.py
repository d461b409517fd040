"""Removes what RHSM keeps here, without a word to its server."""

from calotype.guest.steps.step import RHEL, Concern, commanding

STEP = commanding(
    name="rhsm-clean",
    heading="Red Hat's own cleaning of subscription data",
    order=45,
    concern=Concern.IDENTITY,
    command=("subscription-manager", "clean"),
    distributions=RHEL,
)
