"""`lifecycle bench`: what our code costs as a ratio to a floor, measured in one run on one machine. No timed assertion anywhere."""
