"""The dedup domain of what is public: its key is no secret, so all installations name public chunks alike."""

from blake3 import blake3

from calotype.store.digest import Domain

#: A digest with this key is a hash like any other: whoever holds a chunk knows its name.
COMMUNITY = Domain(
    "community", blake3(b"", derive_key_context="calotype community domain, version 1").digest()
)
