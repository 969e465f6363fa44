"""The stages of a fit: derivative matching, multiple and single shooting, growing horizon."""
