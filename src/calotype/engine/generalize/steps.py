"""Which steps of generalizing somebody wants."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Which steps to perform: ``enable`` besides the default ones, ``disable`` not."""

    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()


#: Those that are performed unless somebody says otherwise.
DEFAULT = Steps()
