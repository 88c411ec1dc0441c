"""Choose answers from given strings by their likelihoods."""
