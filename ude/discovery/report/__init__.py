"""What the report of a fit or a discovery shows, as plain data for `ude.reporting`."""
