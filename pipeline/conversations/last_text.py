"""The text that a prompt asks last, which may be cut into parts or written in another form."""

from pipeline.records import Conversation, Prompt


def last_text(prompt: Prompt) -> str | None:
    """Return what a prompt asks last: its text, or that of the user's last message; None if no text is last."""
    if isinstance(prompt, str):
        return prompt
    last = prompt.messages[-1]
    content = last.get("content")
    return content if last.get("role") == "user" and isinstance(content, str) else None


def with_last_text(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt that asks another text last; see `last_text`."""
    if isinstance(prompt, str):
        return text
    *before, last = prompt.messages
    return Conversation([*before, last | {"content": text}], prompt.template)
