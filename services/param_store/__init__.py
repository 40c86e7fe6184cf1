"""Models, layouts, versions; drives reallocations."""
