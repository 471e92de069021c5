"""What is computed on readings and bids, written once over plain or shared numbers [risk]."""
