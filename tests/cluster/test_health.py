"""The image's own check of its health, against a real head."""

import json
import re
import subprocess
import sys

import pytest

from tests.cluster.head import Head
from tests.docker.dockerfile import stage
from tests.s3.weed import free_port

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.slow]


def healthy(port: int) -> bool:
    """What the check says of a node whose agent listens at ``port``, without the cluster's token."""
    [words] = re.findall(r"^HEALTHCHECK .*?CMD (.+)$", stage("base"), re.MULTILINE)
    python, *arguments = json.loads(words)
    assert python == "python"
    command = [sys.executable, *(word.replace(":52365/", f":{port}/") for word in arguments)]
    assert any(f":{port}/" in word for word in command)
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_node_of_a_cluster_with_a_token_is_healthy(head: Head) -> None:
    assert healthy(head.agent_port)


def test_a_container_without_a_ray_node_is_not_healthy() -> None:
    assert not healthy(free_port())
