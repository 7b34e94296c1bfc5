"""Who may ask the service, and how often: API keys, bearer tokens, a rate limit; and where it listens without them."""
