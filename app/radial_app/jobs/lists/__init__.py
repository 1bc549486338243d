"""Files of jobs, as people write them: rows, prompts that stand for several, YAML. Imports what its folder may."""
