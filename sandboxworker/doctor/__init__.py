"""What an engine can enforce, proved by doing it."""
