"""What a fit minimizes: misfit of the measured columns, noise models, priors and penalties."""
