"""One adapter of the demo bank through PEFT and through this engine."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Request, Sampling
from pipeline.engine.settings import EngineSettings
from pipeline.models import PromptFormat, load_model, load_tokenizer, resolve_model
from pipeline.records import Completion, Mixture
from tests import examples

DEMO = Path("demo")
ADAPTER = "object_counting"


@pytest.mark.smollm
def test_records_get_the_same_text_through_peft_and_through_the_engine() -> None:
    torch.set_num_threads(2)
    config = load_settings("generate", [], GenerateConfig)
    folder = resolve_model(config.model.path)
    tokenizer = load_tokenizer(folder)
    rows = pq.read_table(DEMO / "data" / "suite-test.parquet", filters=[("task", "=", ADAPTER)]).to_pylist()
    texts = [row["prompt"] for row in rows[: examples(50)]]
    prompts = PromptFormat(tokenizer, config.model.prompts).encode(texts)
    sampling = Sampling(max_new_tokens=5)
    expected = _through_peft(folder, tokenizer, prompts, sampling.max_new_tokens)
    model = load_model(folder, "fp32")
    engine = Engine(model, tokenizer, AdapterBank.load(DEMO / "bank"), EngineSettings(batch_size=16))
    requests = [Request(str(i), prompt, Mixture.of({ADAPTER: 1.0})) for i, prompt in enumerate(prompts)]
    answers = {request.id: answer for request, answer in engine.generate(requests, sampling)}
    outputs = [answers[str(i)] for i in range(len(prompts))]
    assert [a.output for a in outputs if isinstance(a, Completion)] == expected
    assert len(set(expected)) > 3


def _through_peft(folder: str, tokenizer: object, prompts: list[list[int]], new_tokens: int) -> list[str]:
    peft = PeftModel.from_pretrained(load_model(folder, "fp32"), DEMO / "bank" / ADAPTER).eval()
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.inference_mode():
        found = peft.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
    return list(tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True))  # type: ignore[attr-defined]
