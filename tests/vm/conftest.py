"""Real guests: an installation with the tiny guest's image, and the command line on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from calotype.recipe import build


def recipe_cache():
    default = Path.home() / ".cache" / "calotype"
    return Path(os.environ.get("CALOTYPE_RECIPE_CACHE", default))


@pytest.fixture(scope="session")
def tiny():
    """The tiny guest's raw disk."""
    return build("tiny", recipe_cache()).path


class Cli:
    """``calotype`` as a user runs it, in a home of its own."""

    def __init__(self, home):
        self.home = home
        self.env = {**os.environ, "CALOTYPE_HOME": str(home)}

    def argv(self, *arguments):
        return [sys.executable, "-m", "calotype", *map(str, arguments)]

    def run(self, *arguments, status=0, timeout=300, **options):
        """Run a command to its end; fail when its exit status is another one."""
        done = subprocess.run(
            self.argv(*arguments),
            env=self.env,
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )
        assert done.returncode == status, (
            f"{arguments}: {done.returncode}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        )
        return done

    def __call__(self, *arguments, **options):
        """Run a command and read its JSON."""
        at = arguments.index("--") if "--" in arguments else len(arguments)
        arguments = (*arguments[:at], "-o", "json", *arguments[at:])
        out = self.run(*arguments, **options).stdout
        return json.loads(out) if out.strip() else None

    def guest(self, vm, script):
        """Run a shell script in a guest as root; what it printed."""
        done = self.run("vm", "run-command", vm, "--script", "-", input=script.encode())
        return done.stdout.decode().strip()

    def start(self, *arguments):
        """Start a command and leave it to the caller."""
        return subprocess.Popen(
            self.argv(*arguments),
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def delete_vms(self):
        for vm in self("vm", "list") or []:
            self.run("vm", "delete", vm["name"])


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """An empty installation for a module; its VMs are gone at the end."""
    cli = Cli(tmp_path_factory.mktemp("home"))
    yield cli
    cli.delete_vms()
