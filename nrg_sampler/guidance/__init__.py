"""The method: how the gradient of a reward becomes a change of the velocity."""
