"""What commands share: options, progress, and text that cannot steer a terminal."""
