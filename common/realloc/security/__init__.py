"""Who is who: certificates, bearer tokens, and what each role may call."""
