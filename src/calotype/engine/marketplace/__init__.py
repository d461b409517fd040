"""The marketplace: other publishers' images and recipes, their terms, and how they get here."""
