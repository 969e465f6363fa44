"""How well a fit is known: intervals of parameters, bootstrap, many starts."""
