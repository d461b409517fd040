"""``calotype config``: what can be set, and what is."""

from calotype.cli.common import Common
from calotype.cli.output import Columns, emit
from calotype.config import SETTINGS, Home, Settings

COLUMNS: Columns = {
    "Setting": lambda r: r["setting"],
    "Value": lambda r: r["value"],
    "Environment": lambda r: r["environment"],
    "What it is": lambda r: r["help"],
}


def config(*, common: Common | None = None) -> None:
    """Show what can be set in config.toml (in CALOTYPE_HOME) or by the environment, and what is set.

    Other stores, for `calotype store copy` and `repair`, get names under [stores]: NAME = "URL".
    """
    path = Home.from_environment().config
    settings = Settings.load(path)
    rows = [
        {
            "setting": setting.key,
            "value": str(settings.values[setting.key]),
            "environment": setting.environment,
            "help": setting.help,
        }
        for setting in SETTINGS
    ]
    rows += [
        {"setting": f"stores.{name}", "value": url, "environment": "", "help": ""}
        for name, url in settings.stores.items()
    ]
    emit(common or Common(), rows, COLUMNS)
