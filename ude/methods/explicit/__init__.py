"""Explicit Runge-Kutta methods: tableaus and algorithm objects."""
