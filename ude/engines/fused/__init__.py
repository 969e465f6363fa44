"""The fused engine: a whole solve and its reverse sweep as one compiled program."""
