"""Turn a record's prompt or messages into the token ids that every later stage uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pipeline.errors import UserError
from pipeline.records import Prompt

Mode = Literal["raw", "chat"]
_T = TypeVar("_T")
_MARK = "\u241e"


@dataclass(frozen=True)
class TokensWithOffsets:
    """Token ids of a text; ``ends``: the end of each token in the text (0: the tokenizer added it)."""

    tokens: list[int]
    text: str
    ends: list[int]


class PromptFormat:
    """Renders and tokenises prompts for one model.

    ``raw`` prompts are tokenised unchanged; in ``chat`` mode a prompt becomes one user message. ``messages`` always go
    through the model's chat template, with its generation prompt at the end.
    """

    def __init__(self, tokenizer: Any, mode: Mode = "raw") -> None:
        self.tokenizer = tokenizer
        self.mode = mode
        if mode == "chat" and not tokenizer.chat_template:
            raise UserError(
                "model: prompt_format=chat, but the tokenizer has no chat template; use model.prompt_format=raw"
            )

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt (str) or conversation (list of messages)."""
        return _in_order([self._render(prompt) for prompt in prompts], self._tokenise)

    def encode_with_offsets(self, prompts: Sequence[Prompt]) -> list[TokensWithOffsets]:
        """Return the token ids of `encode` with the rendered text and their offsets in it; fast tokenizers only."""
        return _in_order([self._render(prompt) for prompt in prompts], self._tokenise_with_offsets)

    def encode_text(self, texts: Sequence[str]) -> list[TokensWithOffsets]:
        """Return the token ids and offsets of texts as they stand within a template; fast tokenizers only."""
        return self._tokenise_with_offsets(list(texts), add_special_tokens=False)

    def template_tokens(self, conversation: bool) -> tuple[list[int], list[int]]:
        """Return the token ids that the template puts before and after one user message; none for raw prompts.

        A prompt that is cut must keep them: without its end the model would continue the user's text.
        """
        if not conversation and self.mode == "raw":
            return [], []
        text, _ = self._render([{"role": "user", "content": _MARK}])
        head, _, tail = text.partition(_MARK)
        before, after = self._tokenise([head, tail], add_special_tokens=False)
        return before, after

    def encode_answer(self, answers: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each answer with the end-of-sequence token, as adapters are trained."""
        texts = [answer + self.tokenizer.eos_token for answer in answers]
        return self._tokenise(texts, add_special_tokens=False)

    def _render(self, prompt: Prompt) -> tuple[str, bool]:
        """Return the text to tokenise, and whether the tokenizer adds special tokens (templates hold their own)."""
        if isinstance(prompt, str) and self.mode == "raw":
            return prompt, True
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not self.tokenizer.chat_template:
            raise ValueError("the model's tokenizer has no chat template for `messages`")
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text, False

    def _tokenise(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, return_attention_mask=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _tokenise_with_offsets(self, texts: list[str], add_special_tokens: bool) -> list[TokensWithOffsets]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=add_special_tokens, return_attention_mask=False, return_offsets_mapping=True
        )
        found = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [TokensWithOffsets(ids, text, [end for _, end in offsets]) for text, ids, offsets in found]


def _in_order(rendered: list[tuple[str, bool]], tokenise: Callable[[list[str], bool], list[_T]]) -> list[_T]:
    """Tokenise the plain and the templated texts in one batch each, results in the order of ``rendered``."""
    found: dict[int, _T] = {}
    for special in (True, False):
        indices = [i for i, (_, add) in enumerate(rendered) if add is special]
        found |= dict(zip(indices, tokenise([rendered[i][0] for i in indices], special), strict=True))
    return [found[index] for index in range(len(rendered))]
