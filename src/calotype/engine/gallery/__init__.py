"""Galleries of your own: definitions, versions, their life cycle, their copies in other regions."""
