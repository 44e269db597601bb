"""What keeps a run within its means: budgets, policies, downgrade chains, prices, and reports of what was used."""
