"""Commit what a campaign found worth keeping: ``python -m tests.fuzz.keep TARGET DIRECTORY``.

Of a fuzzer's corpus, smallest first, those inputs that take a step from line to line of the readers which no
committed input takes, or take one more often (2, 4, 8 … times) than any.
"""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import corpus, targets

Step = tuple[str, int, int, int]


def steps(target: str, data: bytes) -> set[Step]:
    """The steps that reading an input takes: file, line before, line, and the logarithm of how often."""
    counts: Counter[tuple[str, int, int]] = Counter()

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/store/files/" not in name:
            return None
        last = 0

        def line(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal last
            if event == "line":
                counts[name, last, frame.f_lineno] += 1
                last = frame.f_lineno
            return line

        return line

    sys.settrace(enter)
    try:
        targets.one(targets.TARGETS[target], data)
    finally:
        sys.settrace(None)
    return {(*step, count.bit_length()) for step, count in counts.items()}


def main() -> None:
    """Add to the committed corpus."""
    target, directory = sys.argv[1:]
    kept = [data for _name, data in corpus.inputs(target)]
    known = set[Step]().union(*(steps(target, data) for data in kept))
    found = sorted((p.read_bytes() for p in Path(directory).iterdir()), key=lambda d: (len(d), d))
    for data in found:
        fresh = steps(target, data) - known
        if fresh:
            known |= fresh
            kept.append(data)
    corpus.pack(target, kept)
    sys.stdout.write(f"{target}: {len(kept)} of {len(found)} inputs, {sum(map(len, kept))} bytes\n")


if __name__ == "__main__":
    main()
