"""The proof of soundness: simulated traffic without drift and with known drift, judged by us and by Evidently."""
