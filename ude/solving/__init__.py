"""`solve`: validate the request, choose an engine, attach the sensitivity, return a `Solution`."""
