"""Adam, L-BFGS, Levenberg-Marquardt and Gauss-Newton behind one protocol."""
