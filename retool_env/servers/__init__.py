"""The one way to ask an HTTP server, for sandboxes and vLLM alike."""
