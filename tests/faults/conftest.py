"""What the campaign has found, at the end of a run in one process (-n 0)."""

from __future__ import annotations

from typing import Any

import campaign


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, counts in (("damaged files", campaign.damage), ("kills", campaign.kills)):
        if counts:
            terminalreporter.section(f"faults: {title}", sep="-")
            for name, count in sorted(counts.items()):
                terminalreporter.write_line(f"{name}: {count}")
