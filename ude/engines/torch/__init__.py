"""The torch engine: steps as torch operations, every method, CPU or GPU."""
