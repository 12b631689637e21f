"""The tools of docs/verify-it-yourself.md: its code blocks, written out and run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support import PATIENCE, ROOT, binary

PAGE = ROOT / "docs" / "verify-it-yourself.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MODULES = ROOT / ".cache" / "independent" / "node_modules"


class Page:
    """A folder that looks like a checkout to who follows the page, with its scripts in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        program = folder / "target" / "release" / "blindai"
        program.parent.mkdir(parents=True)
        program.symlink_to(binary())
        (folder / "crates").symlink_to(ROOT / "crates")
        self.commands: list[str] = []
        for language, text in BLOCK.findall(PAGE.read_text()):
            if language == "sh":
                self.commands.append(text)
            else:
                self.write(text)

    def write(self, script: str) -> None:
        """Keep a script under the name that its first line gives."""
        name = re.match(r"(?:#|//) (check_\w+\.\w+)\n", script)
        assert name, f"a code block of the page does not name itself: {script[:80]!r}"
        (self.folder / name[1]).write_text(script)

    def command(self, about: str) -> str:
        """The page's command with this word in it."""
        [command] = [command for command in self.commands if about in command]
        return command

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page, with the tools that it says to install."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "NODE_PATH": str(MODULES)}
        return subprocess.run(
            ["sh", "-ec", command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


def failed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The checks that a script of the page printed as failed; its exit code must say the same."""
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    assert {line[:5] for line in lines} <= {"pass ", "FAIL "}, done
    found = {line[5:] for line in lines if line.startswith("FAIL")}
    assert done.returncode == bool(found), done
    return found
