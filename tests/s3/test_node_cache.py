"""What head, routers and engines fetch of a model, a bank and a router on a real S3 server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine import base_shapes
from pipeline.errors import UserError
from pipeline.job.preflight import check_models
from pipeline.models import load_config, load_skeleton
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from tests import tiny
from tests.s3.proxy import Faults, Proxy
from tests.s3.weed import BUCKET, Weed, environment
from tests.stages import tiny_job

pytestmark = pytest.mark.s3

LARGE = "glad"  # the adapter whose file is larger than a sample


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> JobSettings:
    """A job whose model has 50 MB of weights, and whose bank has an adapter of 26 MB."""
    folder = tmp_path_factory.mktemp("parts")
    model = tiny.make_model(folder / "model", tiny.llama_config(hidden_size=256, intermediate_size=4096))
    bank = tiny.make_bank(folder / "bank", model)
    shapes = base_shapes(load_skeleton(load_config(str(model))))
    mlp = {name: shape for name, shape in shapes.items() if ".mlp." in name}
    tiny.make_adapter(bank / LARGE, mlp, rank=256, seed=9)
    weights, head = bank / LARGE / "adapter_model.safetensors", load_file(model / "model.safetensors")["lm_head.weight"]
    save_file(load_file(weights) | {"base_model.model.lm_head.weight": head}, weights)  # as PEFT may save it
    return tiny_job(folder, model, bank, tiny.make_router(folder / "router", model))


@pytest.fixture(scope="module")
def remote(weed: Weed, local: JobSettings) -> JobSettings:
    """The same job, with all its parts in the store."""
    client = {"key": weed.environment["AWS_ACCESS_KEY_ID"], "secret": weed.environment["AWS_SECRET_ACCESS_KEY"]}
    fs = fsspec.filesystem("s3", **client, endpoint_url=weed.environment["AWS_ENDPOINT_URL"])
    for part in (local.model.path, local.bank, local.router):
        fs.put(part, f"{BUCKET}/parts/{Path(part).name}", recursive=True)
    where = f"s3://{BUCKET}/parts"
    return replace(
        local,
        model=replace(local.model, path=f"{where}/model"),
        bank=f"{where}/bank",
        router=f"{where}/router",
    )


@pytest.fixture
def store(weed: Weed, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A node with an empty cache, before a store that counts what it sends."""
    with Proxy(weed.port, Faults(), seed=0) as proxy:
        for name, value in environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LORALOOM_CACHE", str(tmp_path / "node"))
        fsspec.filesystem("s3").clear_instance_cache()
        yield proxy
    fsspec.filesystem("s3").clear_instance_cache()


def sent(store: Proxy, part: str) -> int:
    """Bytes of the weights of a part that the store has sent."""
    return sum(n for path, n in store.sent.items() if f"/{part}/" in path and path.endswith(".safetensors"))


def size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def test_the_head_fetches_headers_and_finds_the_same_fingerprints(
    local: JobSettings, remote: JobSettings, store: Proxy
) -> None:
    assert check_models(remote) == check_models(local)
    assert 0 < sent(store, "model") < size(local.model.path) / 5
    assert sent(store, "bank") - (size(local.bank) - size(f"{local.bank}/{LARGE}")) < size(f"{local.bank}/{LARGE}") / 4
    before = store.sent.copy()
    RouteRecords(remote, 256)
    fetched = store.sent - before
    assert not [path for path in fetched if path.endswith(".safetensors")], "a router on the head has it all"


def test_a_router_fetches_no_adapter_and_no_weights(local: JobSettings, remote: JobSettings, store: Proxy) -> None:
    route = RouteRecords(remote, 256)
    assert route.router.fingerprint == check_models(local)[1]["router"]
    assert 0 < sent(store, "model") < size(local.model.path) / 5
    assert not [path for path in store.sent if "/bank" in path]


START = """
import json, sys
from dataclasses import replace
from pipeline.cluster.node_cache import cache_for_engine
from pipeline.errors import UserError
from pipeline.job.preflight import check_models
from tests.stages import tiny_job
from pathlib import Path

where = sys.argv[1]
settings = tiny_job(Path("job"), "model", "bank", "router")
model = replace(settings.model, path=f"{where}/model")
settings = cache_for_engine(replace(settings, model=model, bank=f"{where}/bank", router=f"{where}/router"))
print(json.dumps([settings.model.path, settings.bank, check_models(settings)[1]]))
"""


@pytest.mark.slow
def test_the_engines_of_a_node_fetch_everything_once(local: JobSettings, remote: JobSettings, store: Proxy) -> None:
    command = [sys.executable, "-c", START, f"s3://{BUCKET}/parts"]
    engines = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [json.loads(engine.communicate(timeout=120)[0]) for engine in engines]
    assert found[0] == found[1]
    model, bank, fingerprints = found[0]
    assert fingerprints == check_models(local)[1]
    for part, copy, own in (("model", model, local.model.path), ("bank", bank, local.bank)):
        assert sent(store, part) == size(own)
        for path in Path(own).rglob("*.safetensors"):
            assert (Path(copy) / path.relative_to(own)).read_bytes() == path.read_bytes()
    check_models(remote)
    assert sent(store, "model") == size(local.model.path), "whoever only needs headers takes the copy with values"


@pytest.mark.usefixtures("store")
def test_values_that_the_head_does_not_see_are_checked_before_an_engine_loads_its_model(
    local: JobSettings, tmp_path: Path
) -> None:
    name, bank = "adapter_model.safetensors", f"{BUCKET}/parts/nan"
    tensors = load_file(Path(local.bank) / LARGE / name)
    max(tensors.values(), key=torch.Tensor.numel).view(-1)[100_000] = torch.nan  # between two blocks of the sample
    save_file(tensors, tmp_path / name)
    fs = fsspec.filesystem("s3")
    fs.put(local.bank, bank, recursive=True)
    fs.put(str(tmp_path / name), f"{bank}/{LARGE}/{name}")
    wrong = replace(local, bank=f"s3://{bank}")
    check_models(wrong)
    with pytest.raises(UserError, match=rf"\Abank: adapter '{LARGE}': NaN or infinite values in model\.[^\n]*\Z"):
        GenerateRecords(wrong, "cpu", 1)
