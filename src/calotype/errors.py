"""Every error that Calotype raises on purpose.

Each class has a stable ``code`` (Azure's, where Azure has one). Each instance has a message that says
what is wrong and, where there is one, a ``hint`` that names the cure.

    CalotypeError
    ├── InvalidInput          a name, size, option or file that cannot be used as given
    │   ├── DiskRefused       a disk image that the gate does not let in
    │   └── ReportRefused     a signed report that does not hold
    ├── NotFound              no resource, chunk or object of that name
    ├── Conflict              the name is taken, or the resource is in use
    │   └── NotAllowed        the state of the resource forbids the operation
    │       ├── QuotaExceeded     the subscription has as much as it may have
    │       └── PurchaseRefused   terms that nobody accepted, or an offer for others
    ├── Forbidden             the caller has not the role
    ├── Untrusted             signed metadata, or what it vouches for, that does not hold
    ├── ToolMissing           a program that this machine lacks
    ├── ToolFailed            a program that ended with an error
    │   └── TimedOut          a program or a guest that did not answer in time
    ├── GuestError            the guest answered with an error, or has no agent
    ├── StoreDamaged          stored bytes do not match their digest
    └── StoreUnavailable      the store's server did not do what it was asked; again, it may
"""

from typing import ClassVar


class CalotypeError(Exception):
    """Base of all errors that a user can do something about."""

    code: ClassVar[str] = "InternalError"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(CalotypeError):
    """A name, size, option or file that cannot be used as given."""

    code = "InvalidParameter"


class DiskRefused(InvalidInput):
    """A disk image that the gate does not let in; the message names the problem."""

    code = "InvalidDiskImage"


class ReportRefused(InvalidInput):
    """A signed report that does not hold: changed, signed by nobody that was named, or of other disks."""

    code = "ReportInvalid"


class NotFound(CalotypeError):
    """No resource, chunk or object of that name."""

    code = "ResourceNotFound"


class Conflict(CalotypeError):
    """The name is taken, or the resource is in use."""

    code = "Conflict"


class NotAllowed(Conflict):
    """The state of the resource forbids the operation."""

    code = "OperationNotAllowed"


class QuotaExceeded(NotAllowed):
    """The subscription has as much of something as it may have."""

    code = "QuotaExceeded"


class PurchaseRefused(NotAllowed):
    """The terms of the image's plan were not accepted, or its offer is not for this subscription."""

    code = "ResourcePurchaseValidationFailed"


class Forbidden(CalotypeError):
    """The caller has not the role that this needs."""

    code = "AuthorizationFailed"


class Untrusted(CalotypeError):
    """Signed metadata, or what it vouches for, that does not hold: nothing of it is used."""

    code = "UntrustedContent"


class ToolMissing(CalotypeError):
    """A program that this machine lacks."""

    code = "ToolMissing"


class ToolFailed(CalotypeError):
    """A program that ended with an error."""

    code = "ToolFailed"


class TimedOut(ToolFailed):
    """A program or a guest that did not answer in time."""

    code = "TimedOut"


class GuestError(CalotypeError):
    """The guest answered with an error, or has no agent."""

    code = "VMAgentError"


class StoreDamaged(CalotypeError):
    """Stored bytes do not match their digest, or are gone."""

    code = "StoreDamaged"


class StoreUnavailable(CalotypeError):
    """The store's server did not do what it was asked, or nobody knows whether it did; again, it may."""

    code = "ServiceUnavailable"
