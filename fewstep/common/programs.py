"""Other programs."""

from __future__ import annotations

import subprocess


def run_command(*words: str) -> str:
    """Output of a command; "" if it is missing or fails."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
