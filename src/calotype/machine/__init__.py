"""VMs: the drivers that run them, what they are told at their birth, and how to talk to them."""
