"""The manifests and Dockerfiles: checked against schemas, and against the code that they start.

``rendered`` has the manifests as kubectl renders them, so that they are checked where there is none.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from conf import load_settings
from conf.schema import GenerateConfig
from jobs import submit
from pipeline.cluster.resources import StageResources
from tests.cluster.head import ROOT
from tests.docker.dockerfile import DOCKERFILE, extras

DOCKER = ROOT / "docker"
SCHEMAS = Path(__file__).parent / "schemas"
RENDERED = Path(__file__).parent / "rendered"
FOLDERS = ["overlays/small", "overlays/gpu", "nightly"]


def rendered(folder: str) -> dict[str, Any]:
    """The manifest of a kustomization."""
    return only(kept(folder).read_text())


def kept(folder: str) -> Path:
    return RENDERED / f"{Path(folder).name}.yaml"


def only(text: str) -> dict[str, Any]:
    [manifest] = yaml.safe_load_all(text)
    assert isinstance(manifest, dict)
    return manifest


@pytest.mark.long
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_manifests_kept_are_what_kubectl_renders(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl; what it rendered is checked all the same")
    source = DOCKER / "k8s" / folder
    done = subprocess.run([kubectl, "kustomize", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refresh = f"kubectl kustomize {source.relative_to(ROOT)} > {kept(folder).relative_to(ROOT)}"
    assert only(done.stdout) == rendered(folder), f"not as it was kept: {refresh}"


def problems(manifest: dict[str, Any]) -> list[str]:
    contents = {name: json.loads((SCHEMAS / name).read_text()) for name in ("kubernetes.json", "kuberay.json")}
    registry = Registry().with_resources(
        (name, Resource.from_contents(content, DRAFT202012)) for name, content in contents.items()
    )
    schema = {"$ref": f"kuberay.json#/$defs/{manifest['kind']}"}
    found = jsonschema.Draft202012Validator(schema, registry=registry).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in found]


def job_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("jobTemplate", spec)


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job_spec(manifest)["rayClusterSpec"]
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_are_what_the_schemas_allow(folder: str) -> None:
    assert problems(rendered(folder)) == []


def test_the_schemas_see_misspelt_fields_and_wrong_types() -> None:
    manifest = json.loads(json.dumps(rendered("overlays/gpu")))
    spec = manifest["spec"]
    spec["backofLimit"] = 1
    spec["rayClusterSpec"]["workerGroupSpecs"][1]["maxReplicas"] = "64"
    spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    spec["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"] = {"generateName": "head-"}
    del spec["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    found = problems(manifest)
    assert len(found) == 5
    told = ("backofLimit", "'64'", "imagePullPolice", "generateName", "groupName")
    assert all(any(text in line for line in found) for text in told)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_command_is_one_that_this_version_takes(folder: str) -> None:
    """Its options are parsed and its config is composed and checked, as at the start of the job."""
    words = shlex.split(job_spec(rendered(folder))["entrypoint"])
    assert words[:4] == ["resume", "python", "-m", "jobs.generate"]
    assert submit.submission_id(["generate", *words[4:]]).startswith("loraloom-")
    assert "cluster=kuberay" in words


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_lost_head_is_resumed_and_an_exit_is_not(folder: str) -> None:
    spec = job_spec(rendered(folder))
    assert spec["backoffLimit"] == 0, "KubeRay would run a job again that exits with 1 or 2, each time on a new cluster"
    assert spec["submissionMode"] == "K8sJobMode", "in other modes the job ends with its head"
    assert spec["submitterConfig"]["backoffLimit"] > 2, "each lost head costs a try"
    assert "--new-run" not in spec["entrypoint"], "a try after a failed one must not discard what that committed"
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] <= 60, "GPUs of a job that has ended"


@pytest.mark.parametrize(("folder", "group"), [("overlays/small", 0), ("overlays/gpu", 1), ("nightly", 1)])
def test_nodes_of_engines_start_with_the_head_and_outlast_the_time_between_passes(folder: str, group: int) -> None:
    cluster = job_spec(rendered(folder))["rayClusterSpec"]
    engines = cluster["workerGroupSpecs"][group]
    assert engines["idleTimeoutSeconds"] >= 600
    assert engines["replicas"] > 0
    assert cluster["autoscalerOptions"]["version"] == "v2", "KubeRay refuses idle times of groups without it"


def test_routing_actors_stay_off_the_nodes_of_the_group_with_engines() -> None:
    labels = load_settings("generate", ["cluster=kuberay"], GenerateConfig).cluster.stages.route.labels
    groups = [group["groupName"] for group in rendered("overlays/gpu")["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    route = StageResources(1, labels=labels)
    nodes = [{"Resources": {"CPU": 4.0}, "Labels": {"ray.io/node-group": group}} for group in groups]
    assert dict(zip(groups, map(route.max_actors_on, nodes), strict=True)) == {"routers": 4, "generators": 0}


KILLED = "kill -KILL $$"


@pytest.mark.parametrize(
    ("ends", "code", "runs"),
    [
        (["exit 0"], 0, 1),
        (["exit 1", "exit 0"], 1, 1),
        (["exit 2", "exit 0"], 2, 1),
        (["kill -TERM $$", "exit 0"], 143, 1),
        (["exit 130", "exit 0"], 130, 1),
        ([KILLED, "kill -SEGV $$", "exit 0"], 0, 3),
        ([KILLED, "exit 1"], 1, 2),
        ([KILLED] * 9, 137, 5),
    ],
)
def test_a_command_that_was_killed_runs_again(ends: list[str], code: int, runs: int, tmp_path: Path) -> None:
    """``ends``: of the command's runs, one after another."""
    for run, end in enumerate(ends):
        (tmp_path / str(run)).write_text(end)
    command = 'n=$(ls ran | wc -l); touch "ran/$n"; . "./$n"'
    (tmp_path / "ran").mkdir()
    done = subprocess.run([DOCKER / "resume.sh", "sh", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, len(list((tmp_path / "ran").iterdir()))) == (code, runs), done.stderr


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_have_no_rights_they_do_not_need(folder: str) -> None:
    spec = job_spec(rendered(folder))
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    for pod in pods(rendered(folder)):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["envFrom"] == [{"secretRef": {"name": "loraloom-storage"}}]
            assert not container.get("env"), "credentials come from the secret"
            assert not container["image"].endswith(":latest")


def test_the_gpu_overlay_and_the_nightly_job_have_the_same_cluster() -> None:
    gpu, nightly = rendered("overlays/gpu"), rendered("nightly")
    assert job_spec(nightly)["rayClusterSpec"] == job_spec(gpu)["rayClusterSpec"]
    generators = pods(gpu)[2]
    assert generators["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in generators["tolerations"]
    assert "{date}" in nightly["spec"]["jobTemplate"]["entrypoint"]


def test_all_tries_of_a_night_start_on_its_day() -> None:
    """``yesterday`` is asked for by each try; all end at KubeRay's deadline."""
    nightly = rendered("nightly")["spec"]
    minute, hour, *rest = nightly["schedule"].split()
    assert rest == ["*", "*", "*"]
    template = nightly["jobTemplate"]
    hours = (template["backoffLimit"] + 1) * template["activeDeadlineSeconds"] / 3600
    assert int(hour) + int(minute) / 60 + hours <= 23, "an hour is left for the cluster that is removed"


def test_versions_in_manifests_and_images_are_those_of_the_project() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    [ray] = re.findall(r"^ray==(.+)$", constraints, re.MULTILINE)
    [version] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert job_spec(rendered("overlays/gpu"))["rayClusterSpec"]["rayVersion"] == ray
    images = [container["image"] for pod in pods(rendered("overlays/gpu")) for container in pod["containers"]]
    assert set(images) == {f"loraloom:{version}-cpu", f"loraloom:{version}-gpu"}
    assert f"loraloom:{version}-cpu" in (DOCKER / "compose.yaml").read_text()


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_of_the_head_has_what_the_image_of_generating_nodes_has() -> None:
    """The driver runs on the head, and refuses what is not installed there."""
    assert extras("cpu") == extras("gpu") >= {"cluster", "s3", "guided", "quantized", "demo"}
    assert "gguf" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"][0]


def test_the_image_with_vllm_leaves_out_only_the_versions_that_vllm_does_not_take() -> None:
    assert extras("vllm") == extras("gpu") - {"guided", "quantized"} | {"vllm"}
    [left_out] = re.findall(r"sed -E '/\^\((.+)\)==/d' constraints.txt", DOCKERFILE.read_text())
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert set(left_out.split("|")) <= set(pinned)


def test_images_hold_no_weights_and_nobody_runs_as_root() -> None:
    text = DOCKERFILE.read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert {word for words in copied for word in words.split()} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "pipeline", "jobs", "conf", "docker/resume.sh"),
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {w for words in copied for w in words.split()}
    assert "\nUSER 1000\n" in text
    assert all(":" in image for image in re.findall(r"^FROM (python\S+)", text, re.MULTILINE))


def test_compose_has_a_head_two_workers_and_a_store() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"store", "head", "worker", "submit"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert not services["worker"].get("healthcheck"), "the image's own asks the node itself, not the head"
    for name, service in services.items():
        assert ":latest" not in service["image"]
        for wanted in service.get("depends_on", {}):
            assert "healthcheck" in services[wanted] or wanted == "head", f"{name} waits for the health of {wanted}"
    secrets = re.findall(r"(?:SECRET|TOKEN)\w*: (.+)", (DOCKER / "compose.yaml").read_text())
    assert all(value.startswith("${") for value in secrets), "no secret stands in the file"
