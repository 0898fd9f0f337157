"""Does guidance help? Arms with the same prompts and seeds, graded by something that did not guide."""
