"""``calotype completion``: shell completion."""

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"] = "bash") -> None:
    """Print a completion script: source <(calotype completion bash).

    Parameters
    ----------
    shell
        The shell.
    """
    from calotype.cli import app  # noqa: PLC0415 (this module is loaded by it)

    print(app.generate_completion(prog_name="calotype", shell=shell))
