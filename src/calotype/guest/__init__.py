"""What stands on a disk: looking into guests, and making their disks general."""

from calotype.guest.generalize import GeneralizeReport, StepReport, generalize
from calotype.guest.guest import Action, Edit, Guest, Stat, Tree
from calotype.guest.inspect import Inspection, inspect
from calotype.guest.locate import DiskMap, Filesystem, Partition, survey
from calotype.guest.proof import Finding, Proof, prove, prove_disk
from calotype.guest.secrets import Secret
from calotype.guest.steps import STEPS, SysprepStep, select
from calotype.guest.steps.step import Concern

__all__ = [
    "STEPS",
    "Action",
    "Concern",
    "DiskMap",
    "Edit",
    "Filesystem",
    "Finding",
    "GeneralizeReport",
    "Guest",
    "Inspection",
    "Partition",
    "Proof",
    "Secret",
    "Stat",
    "StepReport",
    "SysprepStep",
    "Tree",
    "generalize",
    "inspect",
    "prove",
    "prove_disk",
    "select",
    "survey",
]
