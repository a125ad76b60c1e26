"""What a model saw and did, in numbers that can be watched."""
