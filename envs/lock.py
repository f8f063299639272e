"""Write envs/*.lock: exact versions with hashes of all that the environments need, for pip.

    python3.12 envs/lock.py [NAME ...]

NAME is the stem of a file in envs/, or `container` for all that pyproject.toml names; default: all of them.
Run it by the Python and on the platform that the lock is for. To install one:

    pip install --require-hashes -r envs/NAME.lock
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ENVS = Path(__file__).parent
CONTAINER = "container"


def requirements(name: str) -> list[str]:
    """What an environment asks pip for."""
    if name == CONTAINER:
        project = tomllib.loads((ENVS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return [*project["dependencies"], *project["optional-dependencies"]["t2i"]]
    lines = (ENVS / f"{name}.yaml").read_text(encoding="utf-8").partition("- pip:\n")[2].splitlines()
    return [line.partition("#")[0].strip().removeprefix("- ") for line in lines if line.strip()]


def locked(wanted: list[str]) -> list[str]:
    """A line for each package that pip would install, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = []
    for entry in entries:
        about, sha256 = entry["metadata"], entry["download_info"]["archive_info"]["hashes"]["sha256"]
        found.append(f"{about['name'].lower()}=={about['version']} --hash=sha256:{sha256}")
    return sorted(found)


def main(names: list[str]) -> None:
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name in names or [*sorted(path.stem for path in ENVS.glob("*.yaml")), CONTAINER]:
        head = f"# {name}: Python {python}, {platform.system()} {platform.machine()}. Made by envs/lock.py."
        content = "\n".join([head, *locked(requirements(name)), ""])
        (ENVS / f"{name}.lock").write_text(content, encoding="utf-8")
        print(f"envs/{name}.lock: {content.count('==')} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
