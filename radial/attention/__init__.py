"""How a plan enters a transformer: processors, families, several processes. Imports plans and the kernels."""
