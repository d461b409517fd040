"""What a guest mounts, as its fstab says."""

from tests.trees import Files

from calotype.guest.fstab import fstab

TEXT = r"""
# UUID=1 /none ext4 defaults
  # UUID=2 /none ext4 defaults
UUID=3	/	ext4
/dev/sda2 /my\040home ext4 noatime,nofail 0 2 # the people's
LABEL=a#b /srv#1 xfs defaults
/swapfile none swap sw
UUID=4 /short
"""


def test_entries_are_read_as_the_guest_reads_them():
    assert [tuple(entry) for entry in fstab(Files({"/etc/fstab": TEXT}))] == [
        ("UUID=3", "/", "ext4", ""),
        ("/dev/sda2", "/my home", "ext4", "noatime,nofail"),
        ("LABEL=a#b", "/srv#1", "xfs", "defaults"),
        ("/swapfile", "none", "swap", "sw"),
    ]


def test_no_fstab_has_no_entries():
    assert list(fstab(Files({}))) == []
