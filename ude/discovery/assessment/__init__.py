"""How far a discovery can be trusted: verdict, inclusion probabilities, intervals, support, stability, confounding."""
