"""What every job works with: the home, the catalogue, the store, the driver, and who is told."""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from calotype.catalog import Catalog
from calotype.config import Home
from calotype.engine import operation
from calotype.engine.operation import Kind, Operation
from calotype.errors import NotFound
from calotype.machine import Driver
from calotype.progress import SILENT, Progress
from calotype.store import DirectoryStore, Repository


@dataclass(frozen=True)
class Context:
    """The parts of one installation, chosen by :mod:`calotype.wire`."""

    home: Home
    driver: Driver
    progress: Progress = SILENT

    @cached_property
    def catalog(self) -> Catalog:
        """The catalogue, opened when first asked."""
        return Catalog(self.home.prepare().catalog)

    @cached_property
    def repository(self) -> Repository:
        """The store, opened when first asked, without what killed commands left in it."""
        repository = Repository.open_or_create(DirectoryStore(self.home.prepare().store))
        repository.sweep()
        return repository

    def close(self) -> None:
        """Close what was opened."""
        for name in ("repository", "catalog"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    # -- where things are

    def base_path(self, index: str) -> Path:
        """The materialized base of an Index."""
        return self.home.bases / f"{index}.raw"

    def disk_path(self, disk_id: str) -> Path:
        """The overlay of a managed disk."""
        return self.home.disks / f"{disk_id}.qcow2"

    def vm_path(self, vm_id: str) -> Path:
        """A VM's directory."""
        return self.home.vms / vm_id

    # -- operations

    def operation(self) -> AbstractContextManager[Operation]:
        """Hold an operation (see :mod:`calotype.engine.operation`)."""
        return operation.operation(self.home.prepare(), known=self._known, discard=self._discard)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a named lock of this installation."""
        with operation.lock(self.home.prepare(), name):
            yield

    def _known(self, kind: Kind, identifier: str) -> bool:
        try:
            if kind == "vm":
                self.catalog.vm(identifier)
            else:
                self.catalog.disk(identifier)
        except NotFound:
            return False
        return True

    def _discard(self, kind: Kind, identifier: str) -> None:
        if kind == "disk":
            self.disk_path(identifier).unlink(missing_ok=True)
            return
        directory = self.vm_path(identifier)
        if directory.exists():
            self.driver.kill(directory)
            shutil.rmtree(directory, ignore_errors=True)

    def drop_unused_bases(self) -> list[str]:
        """Remove the bases that no VM's directory links to and no image needs; return their Indexes."""
        dropped = []
        in_use = self.catalog.indexes_in_use()
        for path in self.home.bases.glob("*.raw"):
            with suppress(FileNotFoundError), self.lock(f"base-{path.stem}"):
                if path.stem not in in_use and os.stat(path).st_nlink == 1:
                    path.unlink()
                    dropped.append(path.stem)
        return dropped
