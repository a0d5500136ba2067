"""What the platform needs of a product: the protocols, how the installed product is found, and planners that any product can have."""
