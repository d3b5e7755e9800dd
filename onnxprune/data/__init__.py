"""Sample sources: files, arrays, and seeded random inputs."""
