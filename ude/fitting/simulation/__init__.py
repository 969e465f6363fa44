"""How a fit simulates: coordinates, windows, initial states, inputs of each trajectory, hidden states."""
