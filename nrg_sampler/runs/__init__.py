"""One run of a pipeline: the recipe, the sampling, and the manifest of the result."""
