"""The C compiler, compiled libraries on disk, and the fingerprint by which a traced Python function is recognized."""
