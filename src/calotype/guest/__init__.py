"""What stands on a disk: looking into guests, and making their disks general."""

from calotype.guest.generalize import GeneralizeReport, generalize
from calotype.guest.guest import Action, Edit, Tree
from calotype.guest.inspect import Inspection, inspect
from calotype.guest.locate import DiskMap, Filesystem, survey
from calotype.guest.proof import Finding, Proof, prove_disk
from calotype.guest.steps import select
from calotype.guest.steps.step import Concern

__all__ = [
    "Action",
    "Concern",
    "DiskMap",
    "Edit",
    "Filesystem",
    "Finding",
    "GeneralizeReport",
    "Inspection",
    "Proof",
    "Tree",
    "generalize",
    "inspect",
    "prove_disk",
    "select",
    "survey",
]
