"""What the requests of a service share: memory, turns, and the budgets of API keys."""
