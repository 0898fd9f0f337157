"""What the parts of the page share: how handlers are called, small components, and what a click tells."""

from __future__ import annotations

from typing import Any

import gradio as gr

RUNS: dict[str, Any] = {
    "concurrency_limit": 32,
    "concurrency_id": "runs",
}  # followed at once; they are worked off one by one
# Private: programs have the named endpoints instead. Hidden progress: the status line says what goes on.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE: dict[str, Any] = {**PRIVATE, "queue": False}
# The cards are in the HTML that a handler returns; a click on one is told with its number. A mark on a card is pressed
# or released here, for drawing the cards again would start their clips again.
TELL_INDEX = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-index]');
  if (!card) return;
  const told = {index: Number(card.dataset.index)};
  if (card.dataset.mark) {
    const pressed = card.getAttribute('aria-pressed') === 'true';
    for (const mark of card.parentElement.querySelectorAll('[data-mark]')) mark.setAttribute('aria-pressed', 'false');
    card.setAttribute('aria-pressed', String(!pressed));
    told.mark = pressed ? 0 : Number(card.dataset.mark);
  }
  trigger('select', told);
});
"""


def visit_name(request: gr.Request) -> str:
    """Return Gradio's name of an open page or program."""
    return str(request.session_hash)


def slider(low: float, high: float, usual: float, step: float, **about: Any) -> Any:
    """Return a slider without a button to reset it."""
    return gr.Slider(low, high, usual, step=step, buttons=[], **about)


def note(text: str) -> None:
    """Add a line that explains."""
    gr.HTML(f'<p class="nrg-note">{text}</p>')


def told(event: Any, name: str = "index") -> int | None:
    """Return what a click told; ``None`` if it did not, or no whole number."""
    value = event._data.get(name)
    return value if isinstance(value, int) else None


def or_skip(value: Any) -> Any:
    """Return a new value, or that there is none."""
    return gr.skip() if value is None else value
