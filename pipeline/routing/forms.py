"""Write a prompt in another form: what a router trained on one template a task would not recognise.

Labelled prompts of a task mostly share one template, and a router learns the template. So each epoch of the training
sees each prompt as it is and in another form: other case, another layout of its list of choices, a text around it,
JSON, a part of it, typos, other white space. `benchmarks/router_forms.py` has the forms for testing, which are
different ones.
"""

import json
import re
from collections.abc import Callable, Sequence
from random import Random

from pipeline.conversations import last_text, with_last_text
from pipeline.records import Prompt

Form = Callable[[str, Random], str]

_ITEM = re.compile(r"^\s*(\w+:|[-*•]|\(?\w{1,2}[.):])\s+(.*)$")
_MIN_WORDS = 8  # of a part of a prompt; the router sees no task in less
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_BEFORE = (
    "Please help me with this:",
    "Question:",
    "Q:",
    "Task:\n",
    "Instruction:\n",
    "### Instruction:\n",
    "User:",
    "<|user|>\n",
    "[user]",
    "Hi! I have a task for you.\n\n",
    "Could you look at the following?\n\n",
    "Read the text below and answer it.\n---\n",
    "You are a helpful assistant.\n\n",
    "System: You are an expert who answers briefly and correctly.\nUser:",
    "<|system|>\nYou are a careful assistant. Follow the instructions of the user.\n<|user|>\n",
    "Below is an instruction that describes a task. Write a response that completes the request.\n\n",
    "You work for the support team of a large company. Be polite, be precise, and never make anything up. If you are"
    " not sure about something, say so.\n\n",
    "I got this from a colleague and do not know what to do with it:\n\n",
    "# Request\n\n",
    "(1/1)",
    "Solve this exercise.\n",
    "Let us think about this one:",
    "Today's date: 2024-03-05. Knowledge cutoff: 2023.\n\n",
    "Input:",
    '"""\n',
    "```\n",
    "Hello,\n\n",
)
_AFTER = (
    "\nA:",
    "\nAssistant:",
    "\n<|assistant|>\n",
    "\n\n### Response:\n",
    "\n\nAnswer:",
    "\nOutput:",
    " [bot]",
    "\n\nThanks in advance!",
    "\n\nReply with the answer only, without an explanation.",
    "\n\nThink step by step, then give the final answer.",
    "\n\nWhat is the right answer? Be brief.",
    "\n\nKeep it short.",
    "\n---\nAnswer in one line.",
    "\n\n# Reply\n",
    "\n\nTake a deep breath and work on this problem carefully. My job depends on it.",
    "\n\nReturn your result as plain text.",
    '\n"""',
    "\n```\n",
    "\n\nBest regards,\nTom",
    " Please answer!",
)
_KEYS = ("prompt", "input", "text", "instruction", "body", "request", "task", "data")
_FIELDS: tuple[dict[str, object], ...] = (
    {"id": 17},
    {"user": "u-204", "session": 8812},
    {"max_tokens": 64, "temperature": 0.0},
    {"model": "default", "stream": False},
    {"source": "web", "created": "2024-03-05T10:00:00Z"},
    {"role": "user"},
    {"priority": "normal", "tags": ["new"]},
)


def in_forms(prompts: Sequence[Prompt], forms: int, rng: Random) -> list[Prompt]:
    """Return prompts as they are, and then what each asks last in another form, ``forms`` times."""
    return [*prompts, *(_varied(prompt, rng) for _ in range(forms) for prompt in prompts)]


def _varied(prompt: Prompt, rng: Random) -> Prompt:
    text = last_text(prompt)
    return with_last_text(prompt, vary(text, rng)) if text else prompt


def vary(prompt: str, rng: Random) -> str:
    """Return a prompt in another form, drawn with ``rng``: some transformations, from the inside out."""
    for form, probability in _FORMS:
        if rng.random() < probability:
            prompt = form(prompt, rng) or prompt
    return prompt


def relist(prompt: str, rng: Random) -> str:
    """Give lines that form a list (``choice: yes``, ``- yes``, ``b) yes``) other marks, or join them in one line."""
    mark, joint = rng.choice(_MARKS), rng.choice((None, None, "; ", " | ", ", "))
    title = rng.choice(("", "", "Choices:", "Choose one of these:"))
    lines: list[str] = []
    for items, run in _runs(prompt.split("\n")):
        if not items:
            lines += run
        elif joint:
            lines.append(f"{title or 'Choices:'} {joint.join(items)}")
        else:
            lines += [title] * bool(title) + [f"{mark(index)}{item}" for index, item in enumerate(items)]
    return "\n".join(lines)


_MARKS: tuple[Callable[[int], str], ...] = (
    lambda index: "- ",
    lambda index: "• ",
    lambda index: f"{index + 1}. ",
    lambda index: f"({chr(97 + index % 26)}) ",
    lambda index: f"{chr(65 + index % 26)}. ",
    lambda index: "",
    lambda index: "option: ",
)


def _runs(lines: list[str]) -> list[tuple[list[str], list[str]]]:
    """Divide lines into lists, as their items and lines, and other lines (no items)."""
    runs: list[tuple[list[str], list[str]]] = []
    kind = None
    for line in lines:
        match = _ITEM.match(line)
        # A word is the same in all lines of its list; a letter or number is another one in each.
        now = None if match is None else match[1] if match[1].endswith(":") else re.sub(r"\w+", "#", match[1])
        if now != kind or not runs:
            runs.append(([], []))
        kind = now
        runs[-1][1].append(line)
        if match:
            runs[-1][0].append(match[2])
    return [(items if len(items) > 1 else [], run) for items, run in runs]


def cut(prompt: str, rng: Random) -> str:
    """Keep a part of the words: from the beginning, to the end, or from the middle."""
    words = list(re.finditer(r"\S+", prompt))
    if len(words) <= _MIN_WORDS:
        return prompt
    size = round(_MIN_WORDS * (len(words) / _MIN_WORDS) ** rng.random())
    start = rng.choice((0, len(words) - size, rng.randint(0, len(words) - size)))
    return prompt[words[start].start() : words[start + size - 1].end()]


def space(prompt: str, rng: Random) -> str:
    """Change the white space: no line breaks, more of them, or other spaces."""
    pattern, replacement = rng.choice(
        ((r"\s+", " "), (r"\s*\n\s*", " "), (r"\n", "\n\n"), (r"\n", "\n  "), (" ", "  "), (r"([.?!]) ", "\\1\n"))
    )
    return re.sub(pattern, replacement, prompt)


def mistype(prompt: str, rng: Random) -> str:
    """Drop, swap or change 1 to 8 % of the characters."""
    characters = list(prompt)
    for _ in range(round(len(characters) * rng.uniform(0.01, 0.08))):
        index = rng.randrange(len(characters))
        kind = rng.randrange(3)
        if kind == 0:
            characters[index] = ""
        elif kind == 1:
            other = max(0, index - 1)
            characters[index], characters[other] = characters[other], characters[index]
        else:
            characters[index] = rng.choice(_LETTERS)
    return "".join(characters)


def recase(prompt: str, rng: Random) -> str:
    """Write all in lower case, upper case or title case."""
    return rng.choice((str.lower, str.upper, str.upper, str.title))(prompt)


def wrap(prompt: str, rng: Random) -> str:
    """Put a text before the prompt, after it, or both, as chat templates, system prompts and people do."""
    before, after = rng.choice(_BEFORE), rng.choice(_AFTER)
    kind = rng.randrange(4)
    gap = "" if before.endswith("\n") else " "
    return (f"{before}{gap}{prompt}" if kind else prompt) + (after if kind != 1 else "")


def to_json(prompt: str, rng: Random) -> str:
    """Make the prompt a field of a JSON object."""
    fields = list((rng.choice(_FIELDS) if rng.random() < 0.6 else {}).items())
    fields.insert(rng.randint(0, len(fields)), (rng.choice(_KEYS), prompt))
    return json.dumps(dict(fields), ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 2)))


_FORMS: tuple[tuple[Form, float], ...] = (
    (relist, 0.3),
    (cut, 0.4),
    (space, 0.2),
    (mistype, 0.2),
    (recase, 0.35),
    (wrap, 0.3),
    (to_json, 0.15),
)
