"""What is to be solved: right-hand side, initial state, time span, parameters, measured inputs."""
