"""The models that the project makes itself."""
