"""Words a small model never saw: refused, where a large tokenizer would have spelled them out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def is_closed(tokenizer: Any) -> bool:
    """Return whether ``tokenizer`` knows whole words only and maps every other one to one unknown token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "model", None)).__name__ == "WordLevel"


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words of ``text`` that a fast tokenizer does not know, each once, in order."""
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    return list(dict.fromkeys(text[start:end] for token, (start, end) in spans if token == tokenizer.unk_token_id))


def require_known_words(tokenizer: Any, texts: Iterable[str]) -> None:
    """Refuse texts with words outside a closed vocabulary.

    Raises:
        ValueError: If there are any; the message names them and the words that are known.
    """
    unknown = [word for text in texts for word in unknown_words(tokenizer, text)]
    if unknown:
        known = sorted(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
        raise ValueError(
            f"Expected words that the model was trained on, but got {', '.join(map(repr, unknown))}; "
            f"write the prompt with these: {', '.join(known)}."
        )
