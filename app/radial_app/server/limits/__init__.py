"""What one visitor may cost."""
