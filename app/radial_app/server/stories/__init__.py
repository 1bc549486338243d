"""Stories over the web: what is taken and told of them, what is done with them, and films that play while they grow."""
