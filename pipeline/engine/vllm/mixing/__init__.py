"""Mixtures inside vLLM: adapters stay in its LoRA slots, and each token has its own weights for all of them.

A request carries its mixtures as text (`codec`). The scheduler admits requests whose adapters fit into the slots
(`scheduler`), the worker loads these adapters and sets the weights of each token before a forward pass (`slots`), and
every adapted layer adds the products of all slots at once (`products`). vLLM loads `plugin.register` in each of its
processes; engines that are started without `slots.mixing_config` are left alone.
"""
