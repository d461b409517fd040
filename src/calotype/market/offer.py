"""What a catalogue says: offers, and where the versions of each come from.

These records are the catalogue's file format too (TOML): a key that is not a field here is refused.
"""

from collections.abc import Callable

from msgspec import Struct

from calotype.market.urn import Urn
from calotype.market.version import Scheme
from calotype.model import Architecture, Generation, OsState, OsType, PurchasePlan, Version

#: Fetches a URL: at most so many bytes of it, and ``InvalidInput`` where it is larger. ``NotFound`` where the
#: server says that there is no such file; any other ``CalotypeError`` where it does not deliver.
Fetch = Callable[[str, int], bytes]


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A publisher's OpenPGP key, and the fingerprint that must have signed."""

    fingerprint: str  # of the primary key: 40 (or 64) hex digits in upper case
    armored: str = ""  # the key itself
    file: str | None = None  # in the catalogue that ships: where ``armored`` stands
    origin: str = ""  # where the key was taken from


class Checksums(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="checksums", tag_field="kind"
):
    """Images beside a file of checksums.

    Attributes:
        url: of the checksum file. With ``{version}`` in its path there is one for each version: the web
            page of the directory above is read for them.
        listing: where versions are to be looked for instead; like a ``url`` with ``{version}``.
        name: of the image, with ``{version}`` (and ``{revision}``, where the scheme has one).
        versions: the shape of the publisher's versions.
        images: the directory of the images, when it is not the checksum file's; may have ``{version}``.
        format: of the disk.
        signature: ``clear``: the checksum file is clearsigned; ``.asc`` and the like: what is added to
            its URL to find its signature; a URL (with ``{version}``): where that is. ``None``: unsigned.
        signed_by: names of the catalogue's keys; any one of them will do.
    """

    url: str
    name: str
    versions: Scheme
    listing: str | None = None
    images: str | None = None
    format: str = "qcow2"
    signature: str | None = None
    signed_by: tuple[str, ...] = ()


class SimpleStreams(
    Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag="simplestreams",
    tag_field="kind",
):
    """A product of a simplestreams index.

    Attributes:
        url: of the index (``…/streams/v1/index.json``, or ``index.sjson`` where it is clearsigned).
        product: its name there.
        items: kinds of item (``ftype``) that are an OS disk, the best one first.
        versions: the shape of its versions; ``None``: that of the newest one.
        hosts: other hosts that paths in the index may lead to.
        signature: as of :class:`Checksums`, but never a URL.
        signed_by: names of the catalogue's keys; any one of them will do.
    """

    url: str
    product: str
    items: tuple[str, ...] = ("disk1.img", "disk-kvm.img", "uefi1.img")
    versions: Scheme | None = None
    hosts: tuple[str, ...] = ()
    signature: str | None = None
    signed_by: tuple[str, ...] = ()


class FromRecipe(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="recipe", tag_field="kind"
):
    """A recipe of ours, which builds the image on this host."""

    recipe: str


class PinnedDisk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data disk of a version, in the format of its OS disk."""

    lun: int
    url: str
    sha256: str
    size: int | None = None  # bytes


class PinnedFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of an offer at one address."""

    version: str  # three numbers
    url: str
    sha256: str
    size: int | None = None  # bytes
    data_disks: tuple[PinnedDisk, ...] = ()


class Pinned(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="url", tag_field="kind"
):
    """Versions at fixed addresses, each with the digest that it must have."""

    files: tuple[PinnedFile, ...]
    format: str


Source = Checksums | SimpleStreams | FromRecipe | Pinned


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an offer is bought as, and the text that must be accepted before the first VM."""

    name: str
    terms: str
    terms_url: str | None = None


class Offer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of a catalogue: a publisher's image, of which there are versions."""

    publisher: str
    offer: str
    sku: str
    title: str
    os_type: OsType
    source: Source
    description: str = ""
    os_state: OsState = OsState.GENERALIZED
    architecture: Architecture = Architecture.X64
    generations: tuple[Generation, ...] = (Generation.V1, Generation.V2)
    aliases: tuple[str, ...] = ()
    plan: Plan | None = None
    entitlement: str | None = None  # that a subscription must hold, such as msdn
    excluded: tuple[str, ...] = ()  # versions (three numbers) that are never the latest
    homepage: str | None = None
    facts: str = ""  # where its addresses and keys are known from, and what nobody signs
    keys: tuple[Key, ...] = ()  # that ``source.signed_by`` names; filled in by the catalogue

    @property
    def urn(self) -> Urn:
        """Its name, without a version."""
        return Urn(self.publisher, self.offer, self.sku)

    @property
    def purchase_plan(self) -> PurchasePlan | None:
        """The plan as images carry it."""
        if self.plan is None:
            return None
        return PurchasePlan(self.publisher, self.offer, self.plan.name)


class File(Struct, frozen=True, kw_only=True):
    """One file of a release, and what it must hash to; at least one digest is always known."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None  # bytes
    sha256: str | None = None  # hex
    sha512: str | None = None  # hex


class Release(Struct, frozen=True, kw_only=True):
    """A version of an offer that can be had today.

    Attributes:
        label: the version as its publisher spells it.
        os_disk: the file of the OS disk, maybe compressed; ``None`` where a recipe builds it.
        format: of the OS disk: ``qcow2``, ``raw``, ``vhd``, ``vhdx``, ``vmdk`` or ``iso``.
        data_disks: the files of its data disks by LUN, of the same format.
        recipe: that builds it here.
        signed_by: fingerprint of the key whose signature vouches for the digests; ``None``: nobody's.
        excluded: it is never the latest.
    """

    version: Version
    label: str
    os_disk: File | None = None
    format: str = "raw"
    data_disks: dict[int, File] = {}
    recipe: str | None = None
    signed_by: str | None = None
    excluded: bool = False
