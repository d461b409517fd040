"""What the Azure Linux Agent keeps of the machine."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="waagent",
    heading="The Azure Linux Agent's state and Hyper-V's key-value pools",
    order=320,
    concern=Concern.IDENTITY,
    remove=("/var/log/waagent.log*",),
    empty=(
        "/var/lib/waagent",
        "/var/log/azure",
        "/var/lib/hyperv",
    ),
)
