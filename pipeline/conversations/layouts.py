"""Arrange the rows of an input as the columns of records, by the layout of the rows; any file format may have it."""

from typing import Any, Literal

from pipeline.untrusted import printable_name

from . import alpaca, openai_batch, sharegpt

Layout = Literal["columns", "openai_batch", "sharegpt", "alpaca"]
"""Columns of a table; a request of the OpenAI batch API; turns of ShareGPT; an instruction and its input, of Alpaca."""

_SIGNS: dict[str, Layout] = {
    "conversations": "sharegpt",
    "conversation": "sharegpt",
    "instruction": "alpaca",
    "custom_id": "openai_batch",
}


def arrange(layout: Layout, values: dict[str, Any], prompt: str, messages: str) -> tuple[dict[str, Any], str]:
    """Turn the values of a row into columns of a record, with the prompt in the column ``prompt`` or ``messages``.

    Returns them, and why the row cannot be used, else empty.
    """
    if layout == "openai_batch":
        return openai_batch.arrange(values)
    if layout == "sharegpt":
        return sharegpt.arrange(values, messages)
    return alpaca.arrange(values, prompt) if layout == "alpaca" else (values, "")


def consumed_columns(layout: Layout) -> tuple[str, ...]:
    """Return the columns that become a part of the prompt, besides those that the config names."""
    return {"sharegpt": sharegpt.CONSUMED, "alpaca": alpaca.CONSUMED}.get(layout, ())


def hint(columns: list[str], layout: Layout, turns: str | None = None) -> str:
    """Say how rows with such columns may be read, which have no prompt if they are read as ``layout``.

    ``turns``: the column of messages, if it holds turns of ShareGPT.
    """
    if layout == "openai_batch":
        return "a chat request needs body.messages, and one of completions body.prompt"
    if turns is not None:
        return f"{turns!r} has turns with 'from': set input=sharegpt input.messages_column={turns}"
    for column in columns:
        if _SIGNS.get(column, layout) != layout:
            named = f" input.messages_column={column}" if column == "conversation" else ""
            return f"it has {column!r}: set input={_SIGNS[column]}{named}"
    shown = ", ".join(map(printable_name, columns[:10])) + (", ..." if len(columns) > 10 else "")
    return f"it has {shown or 'none'}: set input.prompt_column or input.messages_column"
