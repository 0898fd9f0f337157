"""The web page: settings on the left, the same seed without and with the reward on the right.

``handlers`` says what the page does and knows nothing of Gradio; ``page`` is the only module that imports it.
"""

from __future__ import annotations
