"""One run of a pipeline: what is asked for, the sampling, and the manifest of what came out."""
