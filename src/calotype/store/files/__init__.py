"""Where the files of a disk are: partitions, LVM, and maps of ext2/3/4, XFS and NTFS, read without mounting.

Only maps are read, only to choose where to cut. Everything here is a stranger's: a number that makes no sense
ends the reading of what it describes, work and memory are bounded, and nothing is ever an error.
"""

from calotype.store.files.areas import Area, Runs, areas

__all__ = ["Area", "Runs", "areas"]
