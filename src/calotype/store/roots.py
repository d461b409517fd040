"""The roots of a store: which ones are live, and the objects that hold them.

With a ledger, a root is live when the ledger says so, and the ledger keeps a copy of its bytes. The object
``indexes/<id>`` is written right after. Root ids return (the same disk has the same Index), so somebody slow
may remove an object that was just made again; whoever misses the object of a live root puts it back.
"""

from collections.abc import Sequence
from contextlib import suppress

from calotype.errors import Conflict, InvalidInput, NotFound, StoreDamaged
from calotype.store import parameters
from calotype.store.index import PREFIX, Root, root_id
from calotype.store.lease import Lease
from calotype.store.ledger import Ledger
from calotype.store.objects import ObjectStore

BINDING = "ledger"  # the object that names the ledger of a store
_HEX = set("0123456789abcdef")


class Roots:
    """The roots of one store. Safe for several threads."""

    def __init__(self, objects: ObjectStore, ledger: Ledger | None, repository: str) -> None:
        self._objects = objects
        self._ledger = ledger
        self._repository = repository
        self._bound = False

    # -- which ledger

    def bind(self) -> None:
        """Make sure that this store's roots may be changed with this ledger.

        Raises:
            Conflict: another installation's ledger knows what is live here.
            StoreDamaged: the object that says which is damaged.
        """
        if self._bound:
            return
        owner = self._owner()
        if self._ledger is None:
            if owner is not None:
                raise Conflict(
                    "this store belongs to an installation, and only that may change it",
                    hint="use it through the installation whose catalogue knows its images",
                )
        else:
            self._ledger.bind(self._repository)
            if owner is None:
                self._objects.put(BINDING, _binding(self._ledger.id), if_absent=True)
                owner = self._owner()
                self.register()
            if owner != self._ledger.id:
                raise Conflict(
                    "this store belongs to another installation: its ledger is another one",
                    hint="when the other installation's catalogue is lost, adopt the store",
                )
        self._bound = True

    def adopt(self) -> Sequence[str]:
        """Make this ledger that of the store, in place of one that is lost; the roots that are live now.

        Raises:
            Conflict: there is no ledger, or it is another store's.
        """
        if self._ledger is None:
            raise Conflict("a store is adopted with a ledger", hint="open it with a catalogue")
        self._ledger.bind(self._repository)
        self._objects.put(BINDING, _binding(self._ledger.id))
        self._bound = True
        self.register()
        return self.all()

    def register(self) -> None:
        """Tell the ledger of the whole roots that only the store knows."""
        if self._ledger is None:
            return
        known = self._ledger.roots()
        for index in self.listed():
            if index not in known:
                with suppress(NotFound, StoreDamaged):
                    self.expect(index)

    def _owner(self) -> str | None:
        try:
            content = parameters.unseal(BINDING, self._objects.get(BINDING))
        except NotFound:
            return None
        return str(content.get("ledger"))

    # -- roots

    def get(self, index: str) -> bytes:
        """The bytes of a root.

        Raises:
            NotFound: there is no such Index.
            StoreDamaged: its object is damaged, and the ledger has no copy.
        """
        try:
            data = self._objects.get(key_of(index))
            if root_id(data) == index:
                return data
            problem: NotFound | StoreDamaged = StoreDamaged(
                f"Index {index} does not match its id", hint="run `calotype store check`"
            )
        except NotFound:
            problem = NotFound(f"the store has no Index {index}")
        copy = self._ledger.root(index) if self._ledger is not None else None
        if copy is None or root_id(copy) != index:
            raise problem from None
        self._objects.put(key_of(index), copy)
        return copy

    def copy(self, index: str) -> bytes | None:
        """The ledger's copy of a root's bytes, if there is one."""
        return self._ledger.root(index) if self._ledger is not None else None

    def expect(self, index: str) -> bytes:
        """The bytes of a root that is live, and is kept live by the caller's operation.

        Raises:
            NotFound: there is no such Index, or it was removed.
            StoreDamaged: its object is damaged, and the ledger has no copy.
        """
        key_of(index)
        if self._ledger is None:
            return self.get(index)
        data = self._ledger.root(index)
        if data is None and index not in self._ledger.roots():
            found = self.get(index)
            Root.decode(found)
            self._ledger.adopt(index, found)
            data = self._ledger.root(index)
        if data is None:
            raise NotFound(f"the store has no Index {index}")
        return data

    def commit(self, lease: Lease, data: bytes) -> str:
        """Make a root live and durable, whose leaves and chunks are durable; its Index id.

        Raises:
            Lapsed: the lease ran out: what the root needs may be gone.
        """
        index = root_id(data)
        lease.commit(index, data)
        self._objects.put(PREFIX + index, data, if_absent=True)
        return index

    def remove(self, index: str) -> None:
        """Make a root not live any more, and remove its object; harmless when it is gone."""
        key_of(index)
        if self._ledger is not None:
            self._ledger.remove(index)
        self.drop(index)

    def drop(self, index: str) -> None:
        """Remove the object of a root that is not live."""
        self._objects.delete(PREFIX + index)
        # An ingest may have made the root live again before its object went.
        data = self._ledger.root(index) if self._ledger is not None else None
        if data is not None:
            self._objects.put(PREFIX + index, data, if_absent=True)

    def restore(self, index: str) -> bool:
        """Put the object of a live root back if it is missing; whether it was."""
        data = self._ledger.root(index) if self._ledger is not None else None
        if data is None:
            return False
        return self._objects.put(PREFIX + index, data, if_absent=True)

    def complete(self) -> Sequence[str]:
        """Put back the missing objects of all live roots: whoever committed them was killed right then."""
        known = self._ledger.roots() if self._ledger is not None else {}
        missing = {index for index in known if known[index]}.difference(self.listed())
        return [index for index in sorted(missing) if self.restore(index)]

    def listed(self) -> Sequence[str]:
        """The ids of the roots that a listing shows."""
        return [stored.key.removeprefix(PREFIX) for stored in self._objects.list(PREFIX)]

    def all(self) -> Sequence[str]:
        """The ids of all live roots, sorted; a listed one that the ledger does not know counts."""
        known = self._ledger.roots() if self._ledger is not None else {}
        return sorted(
            {i for i in self.listed() if known.get(i, True)} | {i for i in known if known[i]}
        )


def key_of(index: str) -> str:
    """The key of a root's object.

    Raises:
        InvalidInput: this is not the id of an Index.
    """
    if len(index) != 64 or not set(index) <= _HEX:
        raise InvalidInput(f"{index!r} is not the id of an Index")
    return PREFIX + index


def _binding(ledger: str) -> bytes:
    return parameters.seal({"ledger": ledger})
