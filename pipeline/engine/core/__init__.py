"""The native engine's loop: schedule, run one forward pass, choose tokens, again."""
