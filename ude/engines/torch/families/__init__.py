"""One file for each family of methods: how it attempts a step, interpolates and differentiates it."""
