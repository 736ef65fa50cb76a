"""HTTP clients of sandbox servers and vLLM servers: addresses, hosts, bounds, background loop."""
