"""What a pipeline is given beside words: images that a clip starts from and ends on, and what steers it."""
