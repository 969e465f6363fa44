"""What a fit with networks minimizes in Gauss-Newton steps: the negative log posterior and its prior on functions."""
