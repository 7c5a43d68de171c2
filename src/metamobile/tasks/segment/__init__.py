"""Segmentation: results (what is answered; no torch), metric, task (what is trained)."""
