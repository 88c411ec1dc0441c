"""Forms of prompts for testing a router; the ones that it is trained on are in `pipeline/routing/forms.py`.

Each form has its ``relative`` in the training: the same form, one like it, or none.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

_CHOICE = re.compile(r"^choice: (.*)$", re.MULTILINE)
_NEIGHBOURS = {
    a: b for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for a, b in zip(row, row[1:] + row[-2], strict=True)
}
_CONTEXT = (
    "You are Aria, the digital concierge of Northwind Bank. Speak in a warm tone, do not give legal or medical advice,"
    " and refuse requests about other customers. The customer has a gold account and prefers short replies."
)


@dataclass(frozen=True)
class TestForm:
    """A form, its ``group`` in the table, and what the training has of it: ``same``, ``like`` it, or ``none``."""

    name: str
    group: str
    relative: Literal["same", "like", "none"]
    apply: Callable[[str, Random], str]


def _choices(render: Callable[[list[str]], str]) -> Callable[[str, Random], str]:
    """Replace the lines ``choice: ...`` by ``render`` of the choices."""

    def apply(prompt: str, rng: Random) -> str:
        found = list(_CHOICE.finditer(prompt))
        if not found:
            return prompt
        return prompt[: found[0].start()] + render([m[1] for m in found]) + prompt[found[-1].end() :]

    return apply


def _template(text: str) -> Callable[[str, Random], str]:
    return lambda prompt, rng: text.replace("{}", prompt)


def _words(size: int, end: Literal["first", "last", "middle"]) -> Callable[[str, Random], str]:
    """Keep ``size`` words in a row."""

    def apply(prompt: str, rng: Random) -> str:
        words = prompt.split()
        most = max(0, len(words) - size)
        start = {"first": 0, "last": most, "middle": rng.randint(0, most)}[end]
        return " ".join(words[start : start + size])

    return apply


def _each_letter(rate: float, change: Callable[[str], str]) -> Callable[[str, Random], str]:
    """Change a share ``rate`` of the letters."""
    return lambda prompt, rng: "".join(change(c) if c.isalpha() and rng.random() < rate else c for c in prompt)


def _neighbour(letter: str) -> str:
    return _NEIGHBOURS.get(letter.lower(), letter)


def _email(prompt: str, rng: Random) -> str:
    return f"From: Dana Whitfield\nSubject: quick one\n\nHey team,\n\n{prompt}\n\nCheers,\nDana\n\nSent from my phone"


FORMS = (
    TestForm("as is", "as is", "same", lambda prompt, rng: prompt),
    TestForm("lower case", "case", "same", lambda prompt, rng: prompt.lower()),
    TestForm("upper case", "upper case", "same", lambda prompt, rng: prompt.upper()),
    TestForm("swapped case", "upper case", "none", lambda prompt, rng: prompt.swapcase()),
    TestForm(
        "case drawn for each word",
        "case",
        "like",
        lambda prompt, rng: re.sub(r"\S+", lambda m: rng.choice((str.lower, str.upper, str.title))(m[0]), prompt),
    ),
    TestForm(
        "first letters of sentences",
        "case",
        "like",
        lambda prompt, rng: re.sub(r"(^|[.?!\n]\s*)(\w)", lambda m: m[1] + m[2].upper(), prompt.lower()),
    ),
    TestForm(
        "choices as A) B)",
        "layout",
        "like",
        _choices(lambda c: "\n".join(f"{chr(65 + i % 26)}) {x}" for i, x in enumerate(c))),
    ),
    TestForm("choices with *", "layout", "like", _choices(lambda c: "\n".join(f"* {x}" for x in c))),
    TestForm("choices on one line, /", "layout", "like", _choices(lambda c: "Options: " + " / ".join(c))),
    TestForm("choices as [a, b]", "layout", "none", _choices(lambda c: f"Possible answers: {c}")),
    TestForm("no choices", "layout", "none", _choices(lambda c: "")),
    TestForm("[INST]", "wrapper", "like", _template("<s>[INST] {} [/INST]")),
    TestForm(
        "ChatML",
        "wrapper",
        "like",
        _template(
            "<|im_start|>system\nYou are an AI language model.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
    ),
    TestForm("Human, AI", "wrapper", "like", _template("Human: {}\n\nAI:")),
    TestForm("a long system text", "wrapper", "like", _template(_CONTEXT + "\n\nCustomer: {}\nAria:")),
    TestForm("e-mail", "wrapper", "none", _email),
    TestForm(
        "a request around it",
        "wrapper",
        "like",
        _template("yo can u do this one for me real quick?? {} - need it by tonight, ty!!"),
    ),
    TestForm(
        "JSON, question",
        "JSON",
        "like",
        lambda prompt, rng: json.dumps({"lang": "en", "question": prompt, "uid": "a81f"}),
    ),
    TestForm(
        "JSON, messages",
        "JSON",
        "none",
        lambda prompt, rng: json.dumps(
            {"messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": prompt}]}
        ),
    ),
    TestForm(
        "XML",
        "markup",
        "none",
        lambda prompt, rng: f'<?xml version="1.0"?>\n<item lang="en"><query>{html.escape(prompt)}</query></item>',
    ),
    TestForm("quoted with >", "markup", "none", lambda prompt, rng: "> " + prompt.replace("\n", "\n> ")),
    TestForm(
        "markdown", "markup", "none", lambda prompt, rng: "## Problem\n\n**" + prompt.replace("\n", "**\n\n**") + "**"
    ),
    TestForm("first 30 words", "first 30 words", "like", _words(30, "first")),
    TestForm("last 30 words", "last 30 words", "like", _words(30, "last")),
    TestForm("30 words of the middle", "other cuts", "like", _words(30, "middle")),
    TestForm("14 words of the middle", "other cuts", "like", _words(14, "middle")),
    TestForm("without the first line", "other cuts", "like", lambda prompt, rng: prompt.partition("\n")[2] or prompt),
    TestForm("4 % neighbouring keys", "typos", "like", _each_letter(0.04, _neighbour)),
    TestForm("4 % doubled letters", "typos", "none", _each_letter(0.04, lambda c: c + c)),
    TestForm("10 % neighbouring keys", "typos", "none", _each_letter(0.10, _neighbour)),
    TestForm("no punctuation", "typos", "none", lambda prompt, rng: re.sub(r"[^\w\s]", "", prompt)),
    TestForm(
        "no spaces after punctuation", "white space", "none", lambda prompt, rng: re.sub(r"([^\w\s])\s+", r"\1", prompt)
    ),
    TestForm("tabs and CRLF", "white space", "none", lambda prompt, rng: "\t" + prompt.replace("\n", "\r\n\t")),
    TestForm("no line breaks", "white space", "same", lambda prompt, rng: prompt.replace("\n", " ")),
    TestForm(
        "a line each six words", "white space", "none", lambda prompt, rng: re.sub(r"((?:\S+\s+){6})", r"\1\n", prompt)
    ),
    TestForm(
        "upper case JSON without line breaks",
        "joined",
        "like",
        lambda prompt, rng: json.dumps({"question": " ".join(prompt.upper().split()), "n": 1}),
    ),
    TestForm(
        "lower case, typos, in a request",
        "joined",
        "like",
        lambda prompt, rng: (
            "hey, quick question for you: " + _each_letter(0.04, _neighbour)(prompt.lower(), rng) + " any idea?"
        ),
    ),
)
