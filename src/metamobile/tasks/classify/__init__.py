"""Classification: results (what is answered; no torch), task (what is trained)."""
