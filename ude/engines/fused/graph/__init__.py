"""From a traced right-hand side to a straight-line program over numbered elements."""
