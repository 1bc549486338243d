"""The REST interface and who may use it. Imports jobs, tuning and worker."""
