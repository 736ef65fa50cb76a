"""The models that the project makes itself, without the Hugging Face Hub."""
