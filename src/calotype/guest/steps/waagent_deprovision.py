"""The Azure Linux Agent's own deprovisioning.

It runs before everything else: it finds the user to delete in /var/lib/waagent/ovf-env.xml, which a later
step removes. It silently keeps that user where the file is absent, so the steps after it do not trust it.
"""

from calotype.guest.steps.step import Concern, commanding

STEP = commanding(
    name="waagent-deprovision",
    heading="The Azure Linux Agent's own deprovisioning",
    order=20,
    concern=Concern.IDENTITY,
    command=("waagent", "-force", "-deprovision+user"),
)
