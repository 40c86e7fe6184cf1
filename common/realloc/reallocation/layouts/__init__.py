"""Layout providers: which rank holds which box of which canonical tensor."""
