"""Answers chosen from given strings by their likelihoods."""
