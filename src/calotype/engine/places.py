"""Where a new image is to stand: by itself, or as a version in a gallery."""

from dataclasses import dataclass, replace
from typing import Protocol

from calotype.catalog import Act
from calotype.engine import names
from calotype.engine.context import Context
from calotype.errors import Conflict
from calotype.model import Image, Shelf


class Place(Protocol):
    """A place for one image that does not exist yet."""

    @property
    def name(self) -> str:
        """What the image will be called."""
        ...

    def check(self, context: Context) -> None:
        """Refuse early what would be refused at the end.

        Raises:
            InvalidInput, Conflict, NotFound, Forbidden: no image can stand there.
        """
        ...

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the image exist there, and record ``act`` with it; the image as it stands.

        Raises:
            InvalidInput, Conflict, NotFound, Forbidden: it cannot stand there.
        """
        ...


@dataclass(frozen=True, slots=True)
class Managed:
    """By itself, in the caller's group."""

    name: str

    def check(self, context: Context) -> None:
        """Refuse a name that is none, or is taken."""
        names.resource(self.name, "an image")
        if context.catalog.find_image(self.name) is not None:
            raise Conflict(f"image '{self.name}' exists already", hint="choose another name")

    def put(self, context: Context, image: Image, act: Act | None) -> Image:
        """Make the image exist."""
        placed = replace(image, name=self.name, scope=context.scope, shelf=Shelf.MANAGED)
        context.catalog.add_image(placed, act=act)
        return placed
