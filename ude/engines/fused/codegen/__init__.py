"""From a program and a method to C or CUDA source."""
