"""What is known of an unknown term before any search: signs, symmetries, units, allowed forms."""
