"""Migrations of the catalogue, oldest first."""
