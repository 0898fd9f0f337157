"""How the bundled models were made, from nothing: ``python -m nrg_sampler.shapes.train {vae,base,reward}``."""
