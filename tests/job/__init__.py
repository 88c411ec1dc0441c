ANSWER = {
    "output": "o",
    "finish_reason": "stop",
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "answer_logprob": -0.5,
}
"""The values of `records.COMPLETED` of an engine that computes nothing."""
