"""What was measured, sample by sample: a crash keeps what is finished, the next run goes on."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Sample = dict[str, Any]


class Log:
    """The samples of one campaign, in a directory outside of the repository."""

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        """Go on with the campaign in ``directory`` if it has this identity, else begin a new one."""
        self._directory = directory
        head = directory / "campaign.json"
        try:
            known = json.loads(head.read_text())
        except (OSError, ValueError):
            known = {}
        if known.get("identity") != identity:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            known = {"identity": identity, "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
            head.write_text(json.dumps(known, indent=1))
        self.started = str(known["started"])

    def samples(self, row: str) -> list[Sample]:
        """Everything that was measured for a row."""
        try:
            lines = self._path(row).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def has(self, row: str, **key: object) -> bool:
        """Whether a sample with these fields is there."""
        return any(key.items() <= sample.items() for sample in self.samples(row))

    def add(self, row: str, samples: Iterable[Sample]) -> None:
        """Keep samples that belong together: all of them or, after a crash, none."""
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        with self._path(row).open("a") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def forget(self, row: str) -> None:
        """Measure a row anew."""
        self._path(row).unlink(missing_ok=True)

    def _path(self, row: str) -> Path:
        return self._directory / f"{row}.jsonl"
