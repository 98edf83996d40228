"""From labels to pulses: when to fire, the receipts, and the outputs."""
