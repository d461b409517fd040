"""The catalogue: what images, galleries, disks and VMs there are, and whose.

Every SQL statement of Calotype is in here.
"""

from calotype.catalog.audit import Act
from calotype.catalog.catalog import Catalog

__all__ = ["Act", "Catalog"]
