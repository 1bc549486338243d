"""What attends to what: the layout of a clip, the rule, the policy, and the lists of blocks they give. Imports errors,
files and the kernels."""
