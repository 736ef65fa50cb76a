"""The commands of `retool`. Each has a module with its options and its work."""
