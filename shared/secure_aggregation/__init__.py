"""How does a coordinator learn a sum and none of its parts? Masks that cancel (Bonawitz et al., CCS 2017).

Every pair of sites agrees on a mask that one adds and the other subtracts, and every site adds a mask of its own.
Secrets from which masks can be made again are shared among all sites (Shamir, t of n), so that sites may vanish. See
``docs/secure-aggregation.md`` for what this protects from whom.

Why not Flower's ``SecAggPlusWorkflow`` and ``secaggplus_mod`` (flwr 1.41): masks come from NumPy's Mersenne Twister,
seeded by 32 bits (the shared key folded by XOR), so that 2**32 trials unmask an update; values are clipped silently; a
client answers an unmask request that names a peer as alive and as gone, which gives both its secrets away; keys are
not authenticated; examples and metrics leave in the clear; state lives in ``Context.state``, which a worker that is
started again does not have; and it drives legacy strategies through a workflow of its own, not the Message API. What is
sound of it is what it takes from libraries, which is used here too: ``cryptography`` for keys, ciphers and key
derivation, PyCryptodome for Shamir's shares in GF(2**128).

SecAgg+ (Bell et al., CCS 2020) differs in that a site has masks with some neighbours only; it pays from hundreds of
sites on, and lets fewer colluders unmask a site. Here every site has a mask with every other.
"""
