"""The ledger's application behind CometBFT 0.38 by ABCI 2.0 [ledger 11]."""
