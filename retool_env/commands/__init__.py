"""The commands of `retool`, a module each; their options lie beside what they do."""
