"""``calotype community``: galleries that are shown to everybody, here and of other installations."""

from cyclopts import App

from calotype.cli import GROUPS

app = App(name="community", help=GROUPS["community"])
