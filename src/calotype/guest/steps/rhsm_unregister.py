"""Tells Red Hat's server to forget the machine.

Only for the machine itself: a copy's word would count as the original's, which goes on and would lose its
subscription.
"""

from calotype.guest.steps.step import RHEL, Concern, commanding

STEP = commanding(
    name="rhsm-unregister",
    heading="Unregistering at Red Hat's server (of the machine itself, never of a copy)",
    order=40,
    concern=Concern.IDENTITY,
    command=("subscription-manager", "unregister"),
    distributions=RHEL,
    default=False,
)
