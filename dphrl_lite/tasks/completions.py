r"""What a completion says once it has thought, and what it marks as its answer: one rule for all tasks.

Here: the tags between which models think aloud, and the tags around an answer. Not here: reading the answer itself (each
task), boxes (`math_answers.py`) and fences (`sql.py`).

A finished thought (`<think>...</think>`) is left out. Where a thought ends that did not begin, everything up to there was
thought: chat templates write the opening tag into the prompt. Where one begins that does not end, the rest is unfinished.
"""

import re

_THOUGHT = (
    r"(?:\w+[:_])?(?:think|thinking|thoughts?|reasoning|reason|reflection|scratchpad|analysis|rationale|cot|monologue)"
    r"|thought_process|thinking_process|chain_of_thought|(?:start|end)_working_out"
)
_MARK = r"(?:thoughts?|think|thinking|reasoning)"
# <think> and </think>; [THINK], ◁think▷, <|begin_of_thought|> and their ends; <start_working_out> and <end_working_out>
_TAG = re.compile(
    rf"<(?:(?P<slash>/)\s*)?(?P<name>{_THOUGHT})(?:\s+\w+=[^<>\n]{{0,100}})?\s*>"
    rf"|(?P<close>\[/THINK\]|◁/think▷|<\|end(?:_of)?_{_MARK}\|>)"
    rf"|\[THINK\]|◁think▷|<\|(?:begin|start)(?:_of)?_{_MARK}\|>",
    re.IGNORECASE,
)
# Models of the "harmony" format name a channel before each message; the answer is in the channel "final".
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]{0,100}<\|message\|>")
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|return|>",
    "<end_of_turn>",
    "</s>",
)
_ANSWER = re.compile(
    r"<\s*(?P<name>(?:final[_ ]?)?answer|solution|result)\s*>(?P<html>.*?)(?:<\s*/\s*(?P=name)\s*>|\Z)"
    r"|<\|begin_of_(?:solution|answer)\|>(?P<mark>.*?)(?:<\|end_of_(?:solution|answer)\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)


def without_thoughts(completion: str) -> tuple[str, bool]:
    """What `completion` says outside its thoughts, and whether its last thought is unfinished."""
    channels = list(_CHANNEL.finditer(completion)) if "<|channel|>" in completion else []
    if channels:
        final = channels[-1][1].lower() == "final"
        return (_without_end(completion[channels[-1].end() :]) if final else ""), not final
    outside, start, thinks = [], 0, False
    for tag in _TAG.finditer(completion):
        closes = bool(tag["slash"] or tag["close"] or (tag["name"] or "").lower().startswith("end_"))
        if closes and not thinks:
            outside.clear()
        elif not closes and not thinks:
            outside.append(completion[start : tag.start()])
        start, thinks = tag.end(), not closes
    return "\n".join(outside if thinks else [*outside, _without_end(completion[start:])]), thinks


def _without_end(text: str) -> str:
    """`text` without the special token that ends a turn, where it was decoded with the rest."""
    return next((text.removesuffix(end) for end in _ENDS if text.endswith(end)), text)


def marked_answers(text: str) -> list[tuple[int, str]]:
    """Where answers between tags such as `<answer>...</answer>` end in `text`, and what they hold; without blank ones."""
    marks = ((match.end(), match["html"] or match["mark"] or "") for match in _ANSWER.finditer(text))
    return [(end, inside) for end, inside in marks if inside.strip(" .\n\t")]


def last_marked(text: str) -> str:
    """The last of `marked_answers`, or all of `text` where it marks none: for tasks that read an answer from its end."""
    marked = marked_answers(text)
    return marked[-1][1] if marked else text
