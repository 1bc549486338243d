"""The far field: what the lists leave out, attended as means of blocks in the same softmax."""
