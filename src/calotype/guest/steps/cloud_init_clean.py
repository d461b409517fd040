"""cloud-init's own cleaning, without ``--machine-id``: some versions delete the file with it."""

from calotype.guest.steps.step import Concern, commanding

STEP = commanding(
    name="cloud-init-clean",
    heading="cloud-init's own cleaning",
    order=30,
    concern=Concern.IDENTITY,
    command=("cloud-init", "clean", "--logs"),
)
