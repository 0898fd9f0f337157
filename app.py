"""The web page as a Hugging Face Space runs it; on your own machine, `nrg-sampler app` does the same."""

from __future__ import annotations

from nrg_sampler.ui.server import serve

if __name__ == "__main__":
    serve()
