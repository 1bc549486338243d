"""Jobs into videos: attempts, workers, their pool and who looks after it. Imports jobs and tuning."""
