"""What every job works with: the home, the catalogue, the store, the driver, and who is told."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from calotype.config import Home, Settings
from calotype.engine import operation
from calotype.engine.base.partial import Partial
from calotype.engine.operation import Kind, Operation
from calotype.errors import CalotypeError, Conflict, NotFound, TimedOut
from calotype.machine import Driver
from calotype.model import Caller, Role, Scope, VirtualMachine
from calotype.progress import SILENT, Progress

if TYPE_CHECKING:  # each is loaded when it is first needed: most commands need one of them
    from calotype.catalog import Catalog
    from calotype.store import ObjectStore, Repository

#: How many seconds a command waits for another one that works on the same VM.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Context:
    """The parts of one installation, chosen by :mod:`calotype.wire`."""

    home: Home
    driver: Driver
    progress: Progress = SILENT
    caller: Caller = Caller()

    @property
    def scope(self) -> Scope:
        """Where names are looked up, and where new resources are."""
        return self.caller.scope

    @cached_property
    def catalog(self) -> "Catalog":
        """The catalogue as the caller may see and change it, opened when first asked."""
        from calotype.catalog import Catalog  # noqa: PLC0415 (see above)

        return Catalog(self.home.prepare().catalog, self.caller)

    @cached_property
    def system(self) -> "Catalog":
        """The catalogue for housekeeping, which sees everything."""
        return self.catalog.of(Caller())

    def require_all(self, what: str) -> None:
        """Refuse what concerns the whole installation to everybody but its owner; ``what`` is the act.

        Raises:
            Forbidden: the caller works with roles.
        """
        self.catalog.access.require_all(what)

    @property
    def region(self) -> str:
        """What this installation is called where versions are barred from regions."""
        return str(self.settings.values["region"])

    @cached_property
    def settings(self) -> Settings:
        """What the environment and config.toml say."""
        return Settings.load(self.home.config)

    @cached_property
    def objects(self) -> "ObjectStore":
        """The objects of the store; a directory in the home, unless the settings name another place."""
        from calotype.store.location import open_store  # noqa: PLC0415 (see above)

        return open_store(
            self.settings.values["store.url"] or str(self.home.prepare().store),
            cache=self.home.cache / "objects",
            cache_bytes=self.settings.values["store.cache"],
        )

    @cached_property
    def repository(self) -> "Repository":
        """The store, opened when first asked, without what killed commands left in it."""
        from calotype.store import Repository  # noqa: PLC0415 (see above)

        repository = Repository.open_or_create(
            self.objects, self.catalog.ledger, lookup=self.home.prepare().cache / "lookup"
        )
        repository.sweep()
        return repository

    def close(self) -> None:
        """Close what was opened."""
        for name in ("repository", "objects", "catalog"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    # -- where things are

    def base_path(self, index: str) -> Path:
        """The materialized base of an Index."""
        return self.home.bases / f"{index}.raw"

    def disk_path(self, file: str) -> Path:
        """The overlay of a managed disk, by :attr:`~calotype.model.ManagedDisk.file`."""
        return self.home.disks / f"{file}.qcow2"

    def vm_path(self, vm_id: str) -> Path:
        """A VM's directory."""
        return self.home.vms / vm_id

    # -- operations

    def operation(self) -> AbstractContextManager[Operation]:
        """Hold an operation (see :mod:`calotype.engine.operation`)."""
        return operation.operation(self.home.prepare(), known=self._known, discard=self._discard)

    def lock(self, name: str, *, patience: float | None = None) -> AbstractContextManager[None]:
        """Hold a named lock of this installation (see :func:`calotype.engine.operation.lock`)."""
        return operation.lock(self.home.prepare(), name, patience=patience)

    @contextmanager
    def vm_lock(self, name: str) -> Iterator[VirtualMachine]:
        """Hold a VM, as it is then, against every command that changes or captures it.

        It is the door to a VM's process and disks, and so needs the role of a Contributor.

        Raises:
            NotFound: there is none, or it was deleted meanwhile.
            Forbidden: the caller may not change it.
            Conflict: another command holds it for long.
        """
        vm = self.catalog.vm(name, Role.CONTRIBUTOR)
        with ExitStack() as stack:
            try:
                stack.enter_context(self.lock(f"vm-{vm.id}", patience=_PATIENCE))
            except TimedOut:
                raise Conflict(
                    f"another command is working on VM '{vm.name}'", hint="wait until it has ended"
                ) from None
            yield self.catalog.vm(vm.id)

    def _known(self, kind: Kind, identifier: str) -> bool:
        try:
            if kind == "vm":
                self.system.vm(identifier)
            elif kind == "disk":
                return self.system.has_overlay(identifier)
            else:
                return False
        except NotFound:
            return False
        return True

    def _discard(self, kind: Kind, identifier: str) -> None:
        if kind == "disk":
            self.disk_path(identifier).unlink(missing_ok=True)
            return
        directory = self.vm_path(identifier)
        if not directory.exists():
            return
        if kind == "capture":
            with suppress(CalotypeError):  # a VM that hangs; the next capture tries again
                self.driver.clear_point_in_time(directory)
            return
        self.driver.kill(directory)
        shutil.rmtree(directory, ignore_errors=True)

    def drop_unused(self, indexes: Iterable[str] = ()) -> None:
        """Remove those of ``indexes``, all bases and all reports that no image and no disk needs.

        While an operation is under way nothing is removed, for it may be about to need any of them: such
        bases wait for the next call, such Indexes cost nothing until the store is pruned.
        """
        with operation.quiet(self.home.prepare()) as quiet:
            if not quiet:
                return
            unneeded, partials = set(indexes), list(Partial.all(self.home))
            bases = list(self.home.bases.glob("*.raw"))
            asked = {*unneeded, *(one.index for one in partials), *(path.stem for path in bases)}
            in_use = self.system.indexes_in_use(asked)
            for index in unneeded - in_use:
                self.repository.delete_index(index)
            for partial in partials:
                if partial.index not in in_use:
                    partial.remove()
                elif partial.index not in self.indexes_of_disks():
                    partial.stop()  # continued when a VM needs it again
            for path in bases:
                if path.stem not in in_use and path.stat().st_nlink == 1:
                    path.unlink()
            self._drop_evidence()

    def _drop_evidence(self) -> None:
        """Remove the reports of images that are gone."""
        if self.home.evidence.exists():
            reports = list(self.home.evidence.iterdir())
            known = self.system.image_ids([path.name for path in reports])
            for path in reports:
                if path.name not in known:
                    shutil.rmtree(path, ignore_errors=True)

    def indexes_of_disks(self) -> set[str]:
        """The Indexes whose bases disks of VMs are stacked on."""
        return {disk.index for disk in self.system.every_disk() if disk.index is not None}
