"""What an installation shows to everybody: the documents, the signed metadata over them, the shared domain.

Nothing in here reads a catalogue, a store or the network.
"""
