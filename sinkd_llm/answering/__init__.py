"""A student in use: new rows answered with probabilities that mean something, and the rows it should pass on."""
