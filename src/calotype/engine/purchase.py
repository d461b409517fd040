"""Terms and entitlements: whether a subscription may use an image."""

from calotype.engine.context import Context
from calotype.model import Image


def require(context: Context, image: Image) -> None:
    """Refuse an image that the caller's subscription may not use.

    Raises:
        PurchaseRefused: its terms were not accepted, or the subscription is not entitled to it.
    """
    del context, image
