"""The boot test: clones of an image, started and compared."""
