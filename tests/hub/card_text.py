"""Parts of a card's text."""

import re


def usage(text):
    """The program that shows how to use the tokenizer."""
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def broken_tables(text):
    """Tables that Markdown would not take for such: a blank line, or a row without its bars, ends a table."""
    found = []
    for block in text.split("\n\n"):
        lines = block.strip().splitlines()
        if any(line.startswith("|") for line in lines):
            whole = all(line.startswith("|") and line.endswith("|") for line in lines)
            even = len({line.count("|") for line in lines}) == 1
            if not (whole and even and set(lines[1]) == {"|", "-"}):
                found.append(block)
    return found
