"""The progress bar of an upload."""

from __future__ import annotations

import sys
import time


class ProgressBar:
    """Draws one line on standard error: ``resnet50  [######    ]  60 %  61/102 MB  210 MB/s``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = time.monotonic()

    def __call__(self, sent: int, total: int) -> None:
        share = sent / total if total else 1.0
        filled = int(share * _WIDTH)
        bar = "#" * filled + " " * (_WIDTH - filled)
        rate = sent / _MEGA / max(time.monotonic() - self._start, 1e-3)
        line = (
            f"\r{self._name}  [{bar}] {share:4.0%}  "
            f"{sent / _MEGA:.0f}/{total / _MEGA:.0f} MB  {rate:.0f} MB/s  "
        )
        sys.stderr.write(line + ("\n" if sent >= total else ""))
        sys.stderr.flush()


_WIDTH = 30
_MEGA = 1e6
