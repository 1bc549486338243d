"""Which models there are, where their files lie, and what they are. Imports plans, and families for their patches."""
