"""The stages a pipeline is made of."""
