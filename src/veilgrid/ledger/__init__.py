"""Agreement between replicas of which up to f of 3f + 1 may be Byzantine [ledger]."""
