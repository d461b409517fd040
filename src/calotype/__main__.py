"""The command ``calotype``, also as ``python -m calotype``."""

import signal


def main() -> None:
    """Run the command line and end with its exit status."""
    # While modules load, Ctrl-C ends the process: there is nothing to tidy up, and nobody wants a traceback.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from calotype import cli  # noqa: PLC0415 (see above)

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
