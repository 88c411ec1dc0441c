"""What stands in the Dockerfile."""

import re

from tests.cluster.head import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"


def stage(name: str) -> str:
    """The lines of a stage of the Dockerfile, continued ones joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    [found] = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def extras(target: str) -> set[str]:
    """What the image of a target installs beside the package itself."""
    [found] = re.findall(r"'\.\[(.+)\]'", stage(f"build-{target}"))
    return set(found.split(","))
