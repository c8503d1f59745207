"""A folder of packages that holds `datasets`, what it requires, Pillow for its images, and nothing else."""

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(folder: Path, *names: str) -> Path:
    """Link the installed distributions of these names, and all that they require, into `folder`."""
    folder.mkdir()
    waiting, seen = list(names), set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            target = folder / top
            if not target.exists():
                target.symlink_to(distribution.locate_file(top))
    return folder
