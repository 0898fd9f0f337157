"""Where guidance plugs in: all that knows diffusers pipelines, schedulers and guiders."""
