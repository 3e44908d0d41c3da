"""Prediction of motor outcome, leaving one cohort out."""
